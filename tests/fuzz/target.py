"""Whatever bytes come, triage answers: in bounded time, without an exception, and with nothing that a terminal would obey.

python tests/fuzz/target.py --seconds 600 [--keep FOLDER]     runs atheris; FOLDER keeps what it learned and what it found
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import pickle
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from ncclcheck import assemble, registry, report, triage
from ncclcheck.evidence import _archives, _streams, heap, text
from ncclcheck.evidence._reads import anchors
from ncclcheck.evidence.source import Reading
from ncclcheck.model import Report

LONGEST = 64 << 10  # bytes of an input
SECONDS = 20.0  # as long as a worker may take
MEMORY = 2 << 30  # bytes that a worker may take
ENTRY = {
    "collective_seq_id": 7, "p2p_seq_id": 0, "op_id": 7, "record_id": 6, "profiling_name": "nccl:all_reduce", "state": "scheduled",
    "process_group": ("0", "default_pg"), "input_sizes": [[1048576]], "output_sizes": [[1048576]], "input_dtypes": ["Float"],
    "output_dtypes": ["Float"], "frames": [{"name": "step", "filename": "train.py", "line": 61}], "is_p2p": False, "retired": False,
}  # fmt: skip
DUMP = {"version": "2.10", "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}, "pg_status": {}, "entries": [ENTRY]}


def judge(data: bytes, name: str) -> Report:
    """Triage one file of these bytes as `ncclcheck triage` does, and check everything that must hold of the answer."""
    start = time.process_time()  # of this process alone: the machine may be busy, or stand still
    memory = io.BytesIO(data)
    allowance = _streams.Allowance(lambda: len(data))
    sources = _archives.sources(memory, name, allowance, io.BytesIO(data))
    readings = [each if isinstance(each, Reading) else heap.reading(each) for each in sources]
    run = assemble.run(readings)
    verdict = triage.judge(run)
    read = [{"name": each.name, "kind": each.kind, "bytes": each.nbytes, "problem": each.problem} for each in readings]
    about = {"environment": {}, "probes": (), "nodes": (), "ranks": list(run.ranks.values()), "run": {"world_size": run.world_size}, "sources": read}
    result = report.masked(Report(1, verdict.status, verdict.summary, 0.0, verdict.findings, False, **about))
    shown = {form: report.render(result, form) for form in ("text", "json")}
    assert not [each.problem for each in readings if "the reader" in each.problem], [each.problem for each in readings]
    assert readings and verdict.findings, "no answer"
    assert not [finding for finding in verdict.findings if "own rule" in finding.title], verdict.findings
    assert all(each.isprintable() or each == "\n" for each in shown["text"]), shown["text"]
    json.loads(shown["json"])
    for each in shown.values():
        each.encode()
    for finding in verdict.findings:
        assert all(quote.file in (*run.sources, "") for quote in finding.evidence), finding
    assert time.process_time() - start < SECONDS
    return result


def wrapped(data: bytes) -> tuple[bytes, str]:
    """The first byte says what the rest is put into, so that what lies behind a checksum is reached too."""
    how, data = data[:1], data[1:]
    if how == b"g":
        return gzip.compress(data, 1), "rank1.log.gz"
    if how == b"t":
        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode="w") as archive:
            info = tarfile.TarInfo("rank1.log")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        return memory.getvalue(), "b.tar"
    if how == b"z":
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w") as files:
            files.writestr("rank1.log", data)
        return memory.getvalue(), "b.zip"
    return data, "rank1.log"


def seeds() -> list[bytes]:
    """What rules and readers draw, a flight recorder's dump in both its forms, and archives of them."""
    result = [b"-" + pickle.dumps(DUMP, protocol) for protocol in range(2, 6)] + [b"-" + json.dumps(DUMP).encode()]
    for kind in ("rules", "evidence"):
        for name in registry.names(kind):
            logs = [line.partition(": ")[2] for line in registry.describe(kind, name).doc.splitlines() if line.lstrip().startswith("log ")]
            result += [b"-" + "\n".join(logs).encode()] if logs else []
    plain = result[0][1:]
    for how in b"gtz":
        packed, _ = wrapped(bytes([how]) + plain)
        result += [bytes([how]) + plain, b"-" + packed]
    return result


def limit() -> None:
    """Let too large an allocation be a MemoryError, as in a worker."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


def one(data: bytes) -> None:
    """One input of the fuzzer."""
    with contextlib.suppress(MemoryError):  # a worker ends so, and its source is refused
        judge(*wrapped(data))


def fuzz(words: list[str]) -> None:
    """This process becomes libFuzzer."""
    import atheris

    atheris.instrument_all()
    text.everything()
    limit()
    atheris.Setup([sys.argv[0], *words], one)
    atheris.Fuzz()


def main() -> int:
    """Run the fuzzer for a while in a process of its own; its exit code, 0 where nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        corpus = folder / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            Path(corpus, f"seed-{number:03}").write_bytes(seed)
        words = sorted({anchor for _, read in text.everything().reads for anchor in anchors(read.pattern)})
        quoted = ("".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in word.encode()) for word in words)
        Path(folder, "words").write_text("".join(f'"{word}"\n' for word in quoted))
        options = [f"-max_total_time={given.seconds}", f"-max_len={LONGEST}", f"-timeout={SECONDS:.0f}", "-rss_limit_mb=4096", "-len_control=10"]
        options += [f"-dict={folder / 'words'}", f"-artifact_prefix={folder}/found-", "-print_final_stats=1", "-verbosity=0", str(corpus)]
        return subprocess.run([sys.executable, __file__, "--", *options], check=False).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        fuzz(sys.argv[2:])
    else:
        sys.exit(main())
