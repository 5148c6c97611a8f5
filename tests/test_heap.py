"""A heap of files, folders, archives and pipes is read completely, each source under a name that it can be found by."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import signal
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import SOON, until

from ncclcheck.evidence import _archives, _streams, heap, source, workers
from ncclcheck.evidence.source import Reading

LINE = b"gpu-04:811:900 [0] transport/net_ib.cc:199 NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000\n"


PRINT_NAMES = """
import sys
from ncclcheck.evidence import heap
for reading in heap.read(sys.argv[2:], float(sys.argv[1])):
    print(reading.name, sum(fact.kind == "says" for fact in reading.facts), flush=True)
"""


def read(*paths: Path | str, patience: float = 20.0) -> dict[str, Reading]:
    """What a heap gives, by name; each was read in a worker that is gone by now."""
    readings = list(heap.read([str(path) for path in paths], patience))
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert len({reading.name for reading in readings}) == len(readings)
    return {reading.name: reading for reading in readings}


def found(readings: dict[str, Reading]) -> set[str]:
    """The names under which the line was found, as its own evidence says."""
    named = {name for name, reading in readings.items() if any(fact.kind == "says" for fact in reading.facts)}
    assert named == {fact.source.file for reading in readings.values() for fact in reading.facts if fact.source and fact.kind != "last-line"}
    return named


def tar(mode: str = "w", **members: bytes) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return memory.getvalue()


def zipped(**members: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return memory.getvalue()


def test_a_folder_names_its_sources_relative_to_itself_and_leaves_out_git(tmp_path: Path) -> None:
    for name in ("b.log", "a/x.log", ".hidden", ".git/config"):
        Path(tmp_path, name).parent.mkdir(exist_ok=True)
        Path(tmp_path, name).write_bytes(LINE)
    assert list(read(tmp_path)) == [".hidden", "b.log", "a/x.log"]


def test_several_paths_name_their_sources_relative_to_the_folder_that_holds_them_all(tmp_path: Path) -> None:
    for name in ("one/x.log", "two/x.log", "two/deep/y.log"):
        Path(tmp_path, name).parent.mkdir(exist_ok=True)
        Path(tmp_path, name).write_bytes(LINE)
    both = read(tmp_path / "one" / "x.log", tmp_path / "two")
    assert found(both) == {"one/x.log", "two/x.log", "two/deep/y.log"}
    assert all(Path(tmp_path, name).exists() for name in both)
    assert found(read(tmp_path / "one" / "x.log")) == {"x.log"}
    assert found(read(tmp_path / "one", tmp_path / "one")) == {"x.log"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_file_keeps_its_name_and_all_of_its_parts_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    Path(tmp_path, "rank1.log.packed").write_bytes(pack(b"first\n" * 100_000) + pack(b"second\n" + LINE) + b"\0" * 512)
    (reading,) = read(tmp_path).values()
    assert (reading.name, reading.problem) == ("rank1.log.packed", "")
    assert [fact.source.line for fact in reading.facts if fact.kind == "says" and fact.source] == [100_002]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_is_read_without_unpacking_it(tmp_path: Path, mode: str) -> None:
    Path(tmp_path, "bundle").write_bytes(tar(mode, **{"node/rank1.log": LINE, "rank0.log": b"fine\n"}))
    assert found(readings := read(tmp_path / "bundle")) == {"bundle/node/rank1.log"}
    assert list(readings) == ["bundle/node/rank1.log", "bundle/rank0.log"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_archives_in_archives_are_read_three_deep(tmp_path: Path) -> None:
    deep = zipped(**{"c.tar.gz": tar("w:gz", **{"b.zip": zipped(**{"a.log": LINE})})})
    Path(tmp_path, "d.zip").write_bytes(deep)
    assert found(read(tmp_path)) == {"d.zip/c.tar.gz/b.zip/a.log"}
    Path(tmp_path, "d.zip").write_bytes(zipped(**{"more.zip": deep, "e.log": LINE}))
    readings = read(tmp_path)
    assert found(readings) == {"d.zip/e.log"}
    assert readings["d.zip/more.zip/c.tar.gz/b.zip"].unsafe


def test_a_pipe_and_standard_input_are_read_and_their_writer_is_waited_for(tmp_path: Path) -> None:
    pipe = Path(tmp_path, "pipe")
    os.mkfifo(pipe)
    reader = subprocess.Popen([sys.executable, "-c", PRINT_NAMES, "3", str(pipe), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdin is not None
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(5)
    pipe.write_bytes(gzip.compress(LINE))
    out, _ = reader.communicate(LINE.decode(), timeout=SOON)
    assert out.splitlines() == [f"{pipe} 1", "- 1"]


def test_a_pipe_into_which_nobody_writes_is_given_up_with_a_line_and_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "WRITER_BOUND", 0.5)
    os.mkfifo(tmp_path / "pipe")
    Path(tmp_path, "a.log").write_bytes(LINE)
    readings = {reading.name: reading for reading in heap.read([str(tmp_path / "pipe"), str(tmp_path / "a.log")])}
    assert readings.pop(str(tmp_path / "pipe")).problem == "it cannot be read: nothing was written into it within 0.5 s"
    assert found(readings) == {"a.log"}


def test_a_zip_is_read_from_a_pipe_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_NAMES, "20", "-"], input=zipped(**{"a.log": LINE}), capture_output=True, timeout=SOON, check=True
    )
    assert done.stdout == b"-/a.log 1\n"


def test_devices_sockets_and_pipes_in_a_folder_are_refused_with_a_line_each(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    Path(tmp_path, "a.log").write_bytes(LINE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        readings = read(tmp_path)
    assert found(readings) == {"a.log"}
    assert {name: reading.problem for name, reading in readings.items() if reading.problem} == {
        "pipe": "it cannot be read: it is a pipe",
        "socket": "it cannot be read: it is a socket",
    }
    assert read("/dev/zero")["zero"].problem == "it cannot be read: it is a device"


def test_links_are_not_followed_out_of_a_folder(tmp_path: Path) -> None:
    Path(tmp_path, "secret").write_bytes(LINE)
    folder = tmp_path / "logs"
    folder.mkdir()
    Path(folder, "rank0.log").write_bytes(b"fine\n")
    Path(folder, "latest.log").symlink_to("rank0.log")
    Path(folder, "out.log").symlink_to("../secret")
    Path(folder, "up").symlink_to("..")
    Path(folder, "loop").symlink_to("loop")
    readings = read(folder)
    assert found(readings) == set()
    assert sorted(readings) == ["out.log", "rank0.log", "up"]
    assert "outside" in readings["out.log"].problem and "outside" in readings["up"].problem


LIST_PROBLEMS = """
import os
from ncclcheck.evidence import heap
if os.getuid() == 0:
    os.setuid(65534)
for each in heap._under(["/proc/1"]):
    if isinstance(each, heap.Reading):
        print(each.name, each.problem, sep="|")
"""


def test_a_link_that_may_not_be_read_costs_a_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIST_PROBLEMS], capture_output=True, text=True, timeout=SOON, check=True)
    assert {f"{name}|where the link leads cannot be read: Permission denied" for name in ("cwd", "exe", "root")} <= set(done.stdout.splitlines())


def test_what_may_not_be_read_or_has_vanished_costs_a_line_each(tmp_path: Path) -> None:
    for name in ("closed/x.log", "open/y.log", "open/z.log"):
        Path(tmp_path, name).parent.mkdir(exist_ok=True)
        Path(tmp_path, name).write_bytes(LINE)
    Path(tmp_path, "open/z.log").chmod(0)
    Path(tmp_path, "closed").chmod(0)
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", PRINT_PROBLEMS, str(tmp_path)], capture_output=True, text=True, timeout=SOON, check=True)
    Path(tmp_path, "closed").chmod(0o700)
    assert done.stdout.splitlines() == [
        "closed/|the folder cannot be read: Permission denied",
        "open/y.log|",
        "open/z.log|it cannot be read: Permission denied",
    ]
    assert read(tmp_path / "gone")["gone"].problem == "it cannot be read: No such file or directory"


PRINT_PROBLEMS = """
import os, sys
from ncclcheck.evidence import heap, text
text.everything()  # while the package can be read
if os.getuid() == 0:
    os.setuid(65534)
for reading in heap.read(sys.argv[1:]):
    print(reading.name, reading.problem, sep="|")
"""


def test_names_and_kinds_of_members_do_no_harm_and_are_told(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name in ("../../up.log", "/etc/abs.log", "n" * 5000, "bad\udcff.log"):
            info = tarfile.TarInfo(name)
            info.size = len(LINE)
            archive.addfile(info, io.BytesIO(LINE))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"special-{kind.decode()}")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    Path(tmp_path, "b.tar").write_bytes(memory.getvalue())
    readings = read(tmp_path)
    assert found(readings) == {"b.tar/../../up.log", "b.tar//etc/abs.log", f"b.tar/{'n' * _archives.LONGEST_NAME}…", "b.tar/bad\ufffd.log"}
    assert "leads out of the archive" in readings["b.tar/../../up.log"].problem
    assert "leads out of the archive" in readings["b.tar//etc/abs.log"].problem
    assert "links and devices in it were left out (4)" in readings["b.tar"].problem


@pytest.mark.parametrize("size", [100, 200, 600, 1200, 5000])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_archive_gives_what_came_before_and_a_line(tmp_path: Path, mode: str, size: int) -> None:
    whole = tar(mode, **{"a.log": LINE + os.urandom(2000).hex().encode(), "b.log": LINE + os.urandom(2000).hex().encode()})
    Path(tmp_path, "b.tar").write_bytes(whole[:size])
    readings = read(tmp_path)
    assert size >= len(whole) or any(reading.problem for reading in readings.values()) or mode == "w"
    if size >= 1200 and mode != "w:xz":
        assert "b.tar/a.log" in found(readings)


def test_an_empty_archive_or_folder_is_no_error(tmp_path: Path) -> None:
    assert read(tmp_path) == {}
    Path(tmp_path, "b.zip").write_bytes(zipped())
    assert {name: reading.problem for name, reading in read(tmp_path).items()} == {"b.zip": "it holds no files"}


def test_an_encrypted_member_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    data = bytearray(zipped(**{"a.log": LINE, "locked.log": LINE}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    Path(tmp_path, "b.zip").write_bytes(data)
    readings = read(tmp_path)
    assert found(readings) == {"b.zip/a.log"}
    assert "encrypted" in readings["b.zip/locked.log"].problem


@pytest.mark.parametrize("pack", ["gz", "zip", "tar.gz", "gz in zip"])
def test_a_bomb_is_refused_and_the_rest_is_read(tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_streams, "RATIO_FROM", 4 << 20)
    bomb = {
        "gz": lambda: gzip.compress(b"\0" * (32 << 20)),
        "zip": lambda: zipped(**{"a": b"\0" * (32 << 20)}),
        "tar.gz": lambda: tar("w:gz", a=b"\0" * (32 << 20)),
        "gz in zip": lambda: zipped(**{"a.gz": gzip.compress(b"\0" * (32 << 20))}),
    }[pack]()
    Path(tmp_path, "bomb").write_bytes(bomb)
    Path(tmp_path, "z.log").write_bytes(LINE)
    Path(tmp_path, "repetitive.log.gz").write_bytes(gzip.compress("".join(f"step {n}: fine\n" for n in range(400_000)).encode() + LINE))
    readings = read(tmp_path)
    assert found(readings) == {"z.log", "repetitive.log.gz"}
    refused = [reading for reading in readings.values() if reading.unsafe]
    assert refused and all("times its size" in reading.problem and reading.name.startswith("bomb") for reading in refused)


def test_an_archive_of_very_many_members_ends_at_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_streams, "MEMBERS", 20)
    Path(tmp_path, "many.tar").write_bytes(tar(**{f"{number:03}": LINE for number in range(30)}))
    Path(tmp_path, "many.zip").write_bytes(zipped(**{f"{number:03}": LINE for number in range(30)}))
    readings = read(tmp_path)
    assert len(found(readings)) == 40
    assert readings["many.tar"].unsafe and readings["many.zip"].unsafe


def test_an_endless_source_ends_at_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "ENDLESS", 8 << 20)
    with open(tmp_path / "holes.log", "wb") as file:
        file.write(LINE)
        file.truncate(1 << 40)
    reading = read(tmp_path)["holes.log"]
    assert found({reading.name: reading}) == {"holes.log"}
    assert reading.unsafe and "longer than 8 MiB" in reading.problem


@pytest.fixture
def obstacle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Makes the reading of sources of one name do something else."""

    def put(name: str, act: Callable[[], object]) -> None:
        real = source.read
        monkeypatch.setattr(source, "read", lambda stream, each, *more: act() if each.endswith(name) else real(stream, each, *more))

    yield put


def endless() -> None:
    while True:
        pass


def large() -> None:
    bytearray(4 << 30)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("act", "why"),
    [(endless, "nothing came of it for 3 s"), (large, "it takes more than 2 GiB of memory to read"), (crash, "its reader was ended by signal 9")],
)
def test_what_hangs_or_kills_its_reader_costs_only_itself(
    tmp_path: Path, obstacle: Callable[[str, Callable[[], object]], None], act: Callable[[], object], why: str
) -> None:
    obstacle("2.log", act)
    Path(tmp_path, "b.tar").write_bytes(tar(**{f"{number}.log": LINE for number in range(5)}))
    Path(tmp_path, "c.log").write_bytes(LINE)
    readings = read(tmp_path, patience=3.0)
    assert list(readings) == [*(f"b.tar/{number}.log" for number in range(5)), "c.log"]
    assert found(readings) == set(readings) - {"b.tar/2.log"}
    assert (readings["b.tar/2.log"].problem, readings["b.tar/2.log"].unsafe) == (why, True)


def test_a_source_that_costs_one_worker_after_the_other_is_given_up(tmp_path: Path, obstacle: Callable[[str, Callable[[], object]], None]) -> None:
    obstacle(".log", crash)
    Path(tmp_path, "b.tar").write_bytes(tar(**{f"{number}.log": LINE for number in range(50)}))
    Path(tmp_path, "c.txt").write_bytes(LINE)
    readings = read(tmp_path)
    assert found(readings) == {"c.txt"}
    assert len(readings) == workers.TRIES + 1
    assert "what else it holds was not read" in readings[f"b.tar/{workers.TRIES - 1}.log"].problem


def test_the_order_is_that_of_the_sources_whoever_is_done_first(tmp_path: Path) -> None:
    Path(tmp_path, "0.log").write_bytes((b"y" * 99 + b"\n") * 200_000 + LINE)
    for number in range(1, 200):
        Path(tmp_path, f"{number:03}.log").write_bytes(LINE)
    assert list(read(tmp_path)) == sorted(os.listdir(tmp_path))


def test_workers_end_when_nobody_wants_their_results_and_when_their_parent_is_killed(tmp_path: Path) -> None:
    for number in range(20):
        Path(tmp_path, f"{number:02}.log").write_bytes(LINE)
    results = heap.read([str(tmp_path)])
    next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    reader = subprocess.Popen([sys.executable, "-c", PRINT_NAMES, "20", "-"], stdin=subprocess.PIPE)
    children = until(lambda: Path(f"/proc/{reader.pid}/task/{reader.pid}/children").read_text().split(), SOON, "a worker")
    os.kill(reader.pid, signal.SIGKILL)
    reader.wait()
    until(lambda: not any(Path("/proc", pid).exists() for pid in children), SOON, "the worker's end")


def test_a_worker_leaves_no_core_dump_and_may_not_take_all_memory() -> None:
    def limits(job: int, skip: int, watch: workers.Watch) -> Iterator[tuple[int, int]]:
        import resource

        yield resource.getrlimit(resource.RLIMIT_CORE)[0], resource.getrlimit(resource.RLIMIT_AS)[0]

    ((core, memory),) = workers.Pool(1, limits, lambda job, name, why, gave_up: (-1, -1)).results()
    assert core == 0 and workers.MEMORY < memory < 3 * workers.MEMORY


def test_standard_input_that_is_a_terminal_may_be_pasted_into() -> None:
    ours, theirs = os.openpty()
    reader = subprocess.Popen([sys.executable, "-c", PRINT_NAMES, "20", "-"], stdin=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    os.write(ours, LINE + b"\x04")
    out, _ = reader.communicate(timeout=SOON)
    os.close(ours)
    assert out == b"- 1\n"


def test_a_page_of_log_is_answered_without_torch_and_what_only_a_cluster_needs(tmp_path: Path) -> None:
    Path(tmp_path, "page.log").write_bytes(b"fine\n" * 60 + LINE)
    script = "import sys; from ncclcheck.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, "triage", "page.log"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert {"torch", "vllm", "cryptography", "pyroute2", "pynvml"}.isdisjoint(done.stderr.split())
