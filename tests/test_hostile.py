"""Nothing that somebody put into a log, a dump or an archive breaks triage, costs much memory or time, or reaches the terminal."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzz import target
from hypothesis import given, settings
from hypothesis import strategies as st

from ncclcheck.evidence import heap
from ncclcheck.evidence.source import Reading

LINE = b"gpu-04:811:900 [0] transport/net_ib.cc:199 NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000\n"
SEEDS = [seed[1:] for seed in target.seeds()]
FEW = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def _limited() -> Iterator[None]:
    """A pickle of ten bytes can ask for 16 GiB: the tests get no more memory than a worker, which is refused that at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    target.limit()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@FEW
@given(st.binary(max_size=2000))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    target.judge(data, "rank1.log")


@FEW
@given(st.text(max_size=2000), st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "utf-32"]))
def test_any_text_in_any_encoding_gets_an_answer(content: str, encoding: str) -> None:
    target.judge(content.encode(encoding, "replace"), "rank1.log")


@FEW
@given(st.sampled_from(SEEDS), st.integers(0, 2**32), st.integers(1, 30), st.sampled_from(["-", "g", "t", "z"]))
def test_a_damaged_file_gets_an_answer(seed: bytes, choice: int, changes: int, how: str) -> None:
    choose, data = random.Random(choice), bytearray(seed)
    for _ in range(changes):
        at = choose.randrange(len(data) + 1)
        match choose.randrange(4):
            case 0:
                data[at : at + 1] = bytes([choose.randrange(256)])
            case 1:
                del data[at : at + choose.randrange(200)]
            case 2:
                data[at:at] = choose.choice([b"\xff" * 8, b"\0" * 9, b"9" * 30, b"-", b"\n", b"\r", b"\x1b[2J", data[: choose.randrange(200)]])
            case 3:
                other = choose.choice(SEEDS)
                data[at:at] = other[: choose.randrange(len(other) + 1)]
    target.judge(*target.wrapped(how.encode() + bytes(data)))


@FEW
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*target.ENTRY, *target.DUMP]), inner, max_size=6),
        max_leaves=30,
    ),
    st.sampled_from(["pg_config", "pg_status", "entries", "version", "rank", "nccl_comm_state"]),
    st.booleans(),
)
def test_a_dump_of_any_shape_gets_an_answer(value: object, key: str, pickled: bool) -> None:
    dump = {**target.DUMP, key: value}
    target.judge(pickle.dumps(dump) if pickled else json.dumps(dump).encode(), "nccl_trace_rank_1")


class Calls:
    """What a pickle can do that must never happen."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pickle-was-executed",)


def dumped(**fields: object) -> bytes:
    return pickle.dumps({**target.DUMP, **fields})


START = b"\x80\x04}(\x8c\x07version\x8c\x042.10\x8c\x07entries"
PICKLES = {
    "a call": dumped(entries=[Calls()]),
    "a global": START + b"cos\nsystem\n(S'touch pickle-was-executed'\ntRsu.",
    "a global by name on the stack": START + b"\x8c\x02os\x8c\x06system\x93)Rsu.",
    "an instance": START + b"(S'touch pickle-was-executed'\nios\nsystem\nsu.",
    "an object": START + b"(cos\nsystem\nS'touch pickle-was-executed'\nosu.",
    "an extension": START + b"\x82\x01su.",
    "a persistent id": START + b"K\x01Qsu.",
    "a memo index of 4 billion": START + b"]r\xff\xff\xff\xffsu.",
    "a string of 8 exabytes": START + b"\x8d" + struct.pack("<Q", 2**63 - 1) + b"xsu.",
    "bytes of 4 GB": START + b"B\xff\xff\xff\xffsu.",
    "a bytearray of 8 exabytes": START + b"\x96" + struct.pack("<Q", 2**63 - 1) + b"su.",
    "an integer of 2 GB": START + b"\x8b\xff\xff\xff\x7fsu.",
    "an integer of a million digits": START + b"I" + b"9" * 1_000_000 + b"\nsu.",
    "a frame of 8 exabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + START[2:] + b"]su.",
    "a nest": START + b"]" * 200_000 + b"a" * 199_999 + b"su.",
    "a nest of tuples": START + b")" + b"\x85" * 1_000_000 + b"su.",
    "itself": START + b"]\x94h\x00asu.",
    "a list that doubles": START + b"](K\x01" + b"2" * 50_000 + b"esu.",
    "numbers that collide": START + b"}(" + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(100_000)) + b"usu.",
    "a missing end": dumped()[:-20],
    "nothing on its stack": b"\x80\x04....",
    "marks only": b"\x80\x04" + b"(" * 500_000,
}


def triaged(folder: Path, patience: float = 20.0) -> dict[str, Reading]:
    return {reading.name: reading for reading in heap.read([str(folder)], patience)}


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_the_rest_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "report"
    folder.mkdir()
    Path(folder, "nccl_trace_rank_1").write_bytes(PICKLES[name])
    Path(folder, "rank0.log").write_bytes(LINE)
    readings = triaged(folder, patience=3.0)
    assert any(fact.kind == "says" for fact in readings["rank0.log"].facts)
    dump = readings["nccl_trace_rank_1"]
    assert dump.problem or dump.dump
    assert not Path(tmp_path, "pickle-was-executed").exists()
    assert dump.unsafe or not re.match("a call|a global|an instance|an object|a memo|numbers", name)


DOCUMENTS = {
    "a nest of lists": b'{"version": "2.10", "pg_config": {}, "entries": ' + b"[" * 1_000_000,
    "a nest of objects": b'{"version": "2.10", "pg_config": {}, "entries": ' + b'{"a":' * 1_000_000,
    "a number of a million digits": b'{"version": "2.10", "pg_config": {}, "entries": ' + b"9" * 1_000_000 + b"}",
    "an exponent": b'{"version": "2.10", "pg_config": {}, "pg_status": {"0": {"last_enqueued_collective": 1e999999999}}, "entries": []}',
    "halves of characters": b'{"version": "\\ud800", "pg_config": {"\\udfff": {"desc": "\\ud800"}}, "entries": []}',
    "ranks without end": b'{"version": "2.10", "pg_config": {"0": {"ranks": "[0, 99999999999]"}}, "entries": []}',
    "ncclras in a nest": b'{"nccl_version": "2.28.9", "communicators": ' + b"[" * 1_000_000,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_document_gets_an_answer(name: str) -> None:
    target.judge(DOCUMENTS[name], "nccl_trace_rank_1")


TEXTS = {
    "a line of 100 MB": LINE.strip() + b" " + b"x" * 100_000_000 + b"\n" + LINE,
    "anchors in one line": b"NCCL WARN Duplicate GPU detected : rank " * 100_000,
    "tracebacks only": b"Traceback (most recent call last):\n" * 20_000,
    "frames without end": b"Traceback (most recent call last):\n" + b'  File "a.py", line 1, in f\n' * 100_000,
    "terminal escapes": b"\x1b]0;owned\x07\x1b[2J\x9b1mNCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 50\x1b[8m\n",
    "text that runs backwards": "\u202eNCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 50\u2066\n".encode(),
    "zeros": b"\0" * 10_000_000,
    "ends of lines": b"\r" * 5_000_000,
    "numbers beyond belief": b"[rank99999999999999]: NCCL WARN Duplicate GPU detected : rank 99999999999999999999 and rank -1 both on CUDA device 5",
    "noise": random.Random(1).randbytes(1_000_000),
    "prefixes": b"[rank0]: " * 100_000 + b"\n" + b"[1,3]<stdout>:" * 10_000 + LINE,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_text_gets_an_answer(name: str) -> None:
    target.judge(TEXTS[name], "rank1.log")


def sparse() -> bytes:
    """A tar whose member claims to be 8 exabytes of holes."""
    info = tarfile.TarInfo("holes.log")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + (2**63 - 1).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\0" * 1024


def pax(size: int) -> bytes:
    """A tar whose extended header claims this many bytes."""
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"19 path=some/name\n\n" + b"\0" * 2000


def overlapping() -> bytes:
    """A zip of 100 members that are all the same bytes."""
    packed = gzip.compress(LINE * 1000)[10:-8]
    name, crc = b"a.log", 0
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(packed), len(LINE) * 1000, len(name), 0) + name + packed
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, crc, len(packed), len(LINE) * 1000, len(name), 0, 0, 0, 0, 0, 0)
    directory = (entry + name) * 100
    return local + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 100, 100, len(directory), len(local), 0)


def itself() -> bytes:
    """A gzip file in a zip in a tar and so on, deeper than anybody packs."""
    data = LINE
    for _ in range(40):
        data = gzip.compress(data)
    return data


ARCHIVES = {
    "a sparse file of 8 exabytes": sparse(),
    "an extended header of 8 GB": pax(8 << 30),
    "an extended header of 2 KB that is not there": pax(2048),
    "an extended header of less than nothing": pax(-512),
    "members that overlap": overlapping(),
    "forty layers": itself(),
    "a directory that is not there": b"PK\x05\x06" + b"\xff" * 18,
    "garbage behind": gzip.compress(LINE) + b"garbage" * 1000,
    "a gzip header only": b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
    "an xz header only": b"\xfd7zXZ\0" + b"\xff" * 100,
    "a bzip2 header only": b"BZh9" + b"\xff" * 100,
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_gets_an_answer_and_the_rest_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncclcheck.evidence import _streams

    monkeypatch.setattr(_streams, "RATIO_FROM", 64 << 20)
    Path(tmp_path, "a.tar").write_bytes(ARCHIVES[name])
    Path(tmp_path, "rank0.log").write_bytes(LINE)
    readings = triaged(tmp_path)
    assert any(fact.kind == "says" for fact in readings["rank0.log"].facts)
    assert any(reading.problem for reading in readings.values()) or name == "members that overlap"


def test_a_truncated_or_changed_archive_gets_an_answer() -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.log", LINE)
        archive.writestr("b.log", LINE * 20)
    for whole in (memory.getvalue(), target.wrapped(b"t" + LINE)[0], target.wrapped(b"g" + LINE)[0]):
        for size in range(0, len(whole), max(1, len(whole) // 60)):
            target.judge(whole[:size], "b.zip")
            target.judge(whole[:size] + b"\xff" + whole[size + 1 :], "b.zip")


def test_what_reaches_the_terminal_has_no_control_characters(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    Path(folder, "rank0\x1b[2J\u202e.log").write_bytes(TEXTS["terminal escapes"] + TEXTS["text that runs backwards"])
    for form in ("text", "json"):
        done = subprocess.run(
            [sys.executable, "-m", "ncclcheck", "triage", str(folder), "--format", form], capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 1 and b"Traceback" not in done.stderr
        shown = done.stdout.decode()
        assert all(each.isprintable() or each == "\n" for each in shown) or form == "json"
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
