"""A node says what it is and has within a bound, whatever one collector does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON, until

from ncclcheck import asking, documents
from ncclcheck.collect import inventory, model, versions
from ncclcheck.collect.inventory import Asked
from ncclcheck.survey import Question

ROOT = Path(__file__).parent.parent
HANGS = 5.0  # seconds after which a collector is given up: the others must have answered by then
COLLECTORS = {
    "well": "def section(question): return {'answer': 42, 'size': question.nproc_per_node}",
    "raises": "def section(question): raise PermissionError(13, 'Permission denied', '/proc/1/environ')",
    "broken": "import there_is_no_such_module",
    "hangs": "import threading\ndef section(question): threading.Event().wait()",
    "odd": "def section(question): return {'name': 'caf\\udce9', 'nan': float('nan'), 'seen': {1}, 7: (1, 2)}",
    "object": "def section(question): return {'object': object()}",
    "chatty": "def section(question):\n print('a library says hello')\n return {}",
    "dies": "import os, signal\ndef section(question): os.kill(os.getpid(), signal.SIGSEGV)",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of collectors that behave in every way there is."""
    (tmp_path / "collectors").mkdir()
    for name, text in COLLECTORS.items():
        (tmp_path / "collectors" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "collectors"
    for name in [name for name in sys.modules if name.startswith("collectors")]:
        del sys.modules[name]


def test_a_collector_that_fails_or_hangs_costs_its_own_section_only(package: str) -> None:
    names = ["hangs", "raises", "broken", "object", "absent", "well"]
    began = time.monotonic()
    found = inventory.read(Asked(Question(nproc_per_node=3), names), HANGS, package)
    assert time.monotonic() - began >= HANGS
    assert list(found) == names and found["well"] == {"answer": 42, "size": 3}
    assert found["hangs"] == {"error": f"no answer in {HANGS:g} s"}
    assert found["raises"]["error"].startswith("PermissionError: ") and "/proc/1/environ" in found["raises"]["error"]
    assert "there_is_no_such_module" in found["broken"]["error"] and "collectors.absent" in found["absent"]["error"]
    assert "object" in found["object"]["error"]


def test_copies_between_gpus_begin_when_it_is_known_who_holds_them(package: str, tmp_path: Path) -> None:
    mark = tmp_path / "read"
    devices = f"import pathlib, time\ndef section(question):\n time.sleep(0.2)\n pathlib.Path({str(mark)!r}).touch()\n return {{}}"
    (tmp_path / "collectors" / "devices.py").write_text(devices)
    (tmp_path / "collectors" / "peer_copy.py").write_text(
        f"import pathlib\ndef section(question): return {{'after': pathlib.Path({str(mark)!r}).exists()}}"
    )
    assert inventory.read(Asked(Question(), ["peer_copy", "devices"]), SOON, package) == {"peer_copy": {"after": True}, "devices": {}}
    mark.unlink()
    assert inventory.read(Asked(Question(), ["peer_copy"]), SOON, package) == {"peer_copy": {"after": False}}


def test_what_json_cannot_say_is_put_into_what_it_can(package: str) -> None:
    (section,) = inventory.read(Asked(Question(), ["odd"]), SOON, package).values()
    assert section == {"name": "caf\\udce9", "nan": None, "seen": [1], "7": [1, 2]}


def child(package: str, bound: float = SOON) -> tuple[str, ...]:
    """The real child, with collectors of another package."""
    script = f"from ncclcheck.collect import inventory as i; i.read.__defaults__ = ({bound}, {package!r}); i.main()"
    return (sys.executable, "-c", script)


@pytest.fixture
def importable(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", str(Path(__file__).parents[1]))]))
    return package


def ask(command: tuple[str, ...], *sections: str, seconds: float = 2 * SOON, mark: str = "x") -> dict[str, object]:
    return dict(asyncio.run(asking.inventory(Question(), sections, {"NCCLCHECK_TEST_CHILD": mark}, seconds, command)))


def test_the_child_answers_in_time_although_a_collector_hangs_and_another_prints(importable: str) -> None:
    found = ask(child(importable, HANGS), "hangs", "chatty", "well")  # raises where no answer comes in time
    assert found == {"hangs": {"error": f"no answer in {HANGS:g} s"}, "chatty": {}, "well": {"answer": 42, "size": 1}}


def test_a_collector_that_kills_its_process_leaves_an_error_that_says_so(importable: str) -> None:
    with pytest.raises(OSError, match="it ended without an answer: -11"):
        ask(child(importable), "dies")


def test_a_child_that_does_not_answer_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    script = "import subprocess, threading; subprocess.Popen(['sleep', '600']); threading.Event().wait()"
    with pytest.raises(TimeoutError, match="no answer in 1 s"):
        ask((sys.executable, "-c", script), "well", seconds=1.0, mark=str(tmp_path))
    mark = f"NCCLCHECK_TEST_CHILD={tmp_path}".encode()
    until(lambda: not any(mark in environ(pid) for pid in os.listdir("/proc") if pid.isdigit()), SOON, "the end of the child and its sleep")


def environ(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.mark.parametrize("said", ["no JSON", "[1]", '{"well": 3}'])
def test_an_answer_that_is_none_is_an_error(said: str) -> None:
    with pytest.raises(OSError, match="its answer cannot be read"):
        ask((sys.executable, "-c", f"print({said!r})"), "well")


def test_a_secret_in_an_inventory_leaves_the_node_masked(importable: str, tmp_path: Path) -> None:
    (tmp_path / "collectors" / "secret.py").write_text("def section(question): return {'HF_TOKEN': 'hf_' + 'a' * 30, 'said': 'token=abcdefgh1234'}")
    (section,) = ask(child(importable), "secret").values()
    assert "aaaa" not in str(section) and "abcdefgh1234" not in str(section)


def test_an_inventory_travels_whole_and_what_is_none_is_refused() -> None:
    sections = {"well": {"text": "x" * 10_000_000}}
    packed = documents.pack(sections)
    assert len(packed) < 2**20 and asking.unpack(packed) == sections
    for data in (b"", b"nonsense", packed[:-10]):
        with pytest.raises(ValueError, match="a document"):
            asking.unpack(data)


def test_the_real_child_reads_versions_without_importing_a_framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = tmp_path / "imported"
    for framework in ("torch", "vllm", "ray"):
        (tmp_path / f"{framework}.py").write_text(f"open({str(imported)!r}, 'a').write(__name__)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    found = ask(asking.COMMAND, "versions", "model")
    assert not imported.exists(), imported.read_text()
    versions_ = found["versions"]
    assert (
        isinstance(versions_, dict) and versions_["python"] == ".".join(map(str, sys.version_info[:3])) and versions_["kernel"] == os.uname().release
    )
    assert found["model"] == {"path": None}


def test_a_version_is_that_of_the_distribution_that_python_finds_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist(tmp_path, "vllm", "9.9.9")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert versions.section(Question())["installed"]["vllm"] == "9.9.9"


def dist(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(("number", "version"), [(22809, "2.28.9"), (21903, "2.19.3"), (2804, "2.8.4"), (23007, "2.30.7")])
def test_nccls_number_is_read_as_its_header_makes_it(number: int, version: str) -> None:
    assert versions.nccl_version(number) == version


def test_the_version_of_nccl_is_the_librarys_own_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libnccl.so.2"
    source = tmp_path / "nccl.c"
    source.write_text("int ncclGetVersion(int *version) { *version = 22803; return 0; }")
    if os.system(f"cc -shared -fPIC -o {library} {source} 2>/dev/null") != 0:
        pytest.skip("no C compiler here")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    found = versions.section(Question())
    assert (found["nccl"], found["nccl_path"], found["unread"]) == ("2.28.3", str(library), {})


def test_the_library_of_the_installed_wheel_is_the_one_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist(tmp_path, "nvidia-nccl-cu13", "2.28.9")
    (tmp_path / "nvidia/nccl/lib").mkdir(parents=True)
    (tmp_path / "nvidia/nccl/lib/libnccl.so.2").write_text("no library")
    (tmp_path / "nvidia_nccl_cu13-2.28.9.dist-info/RECORD").write_text("nvidia/nccl/lib/libnccl.so.2,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = versions.section(Question())
    assert (found["installed"]["nccl"], found["nccl_path"]) == ("2.28.9", str(tmp_path / "nvidia/nccl/lib/libnccl.so.2"))


def test_a_library_that_cannot_be_loaded_is_said_to_be_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnccl.so.2").write_text("no library")
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "libnccl.so.2"))
    assert "libnccl.so.2" in versions.section(Question())["unread"]["nccl"]


def test_a_node_looks_at_itself_without_torch_and_without_a_run_directory(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        "try: runpy.run_module('ncclcheck.probes.host', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1, 3), done.stderr  # what this machine lacks is its own affair
    assert "host" in done.stdout and done.stderr.strip() == "False" and os.listdir(tmp_path) == []


def test_a_rank_refuses_a_probe_that_looks_at_nodes_and_says_how_it_is_started() -> None:
    done = subprocess.run([sys.executable, "-m", "ncclcheck.rank", "host"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "python -m ncclcheck.probes.host" in done.stderr


def weights(path: Path, data: bytes, *, length: int | None = None) -> None:
    """A safetensors file with one tensor."""
    header = f'{{"w":{{"dtype":"F32","shape":[{len(data) // 4}],"data_offsets":[0,{len(data) if length is None else length}]}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model of two shards."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    weights(tmp_path / "1.safetensors", bytes(4096))
    weights(tmp_path / "2.safetensors", bytes(range(256)) * 256)
    return tmp_path


def test_a_whole_model_has_nothing_broken_or_missing_and_a_digest_for_each_file(folder: Path) -> None:
    found = model.section(Question(model=str(folder)))
    assert (found["why"], found["broken"], found["missing"]) == ("", {}, [])
    assert all(found["files"][name]["digest"] for name in found["files"] if name != "README.md")
    weights(folder / "2.safetensors", bytes(range(255, -1, -1)) * 256)  # other weights of the same shape
    again = model.section(Question(model=str(folder)))
    assert [name for name in found["files"] if found["files"][name] != again["files"][name]] == ["2.safetensors"]


def test_a_model_that_is_not_whole_says_what_is_wrong_with_which_file(folder: Path) -> None:
    os.truncate(folder / "1.safetensors", 1000)
    (folder / "2.safetensors").unlink()
    (folder / "3.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (folder / "4.safetensors").symlink_to("/nowhere")
    found = model.section(Question(model=str(folder)))
    assert found["missing"] == ["2.safetensors"] and set(found["broken"]) == {"1.safetensors", "3.safetensors", "4.safetensors"}
    assert "1000 bytes, expected 4" in found["broken"]["1.safetensors"] and "git lfs pull" in found["broken"]["3.safetensors"]
    assert found["broken"]["4.safetensors"] == "No such file or directory"


def test_a_folder_that_holds_no_model_says_why_it_cannot_be_used(tmp_path: Path) -> None:
    assert model.section(Question(model=str(tmp_path / "nowhere")))["why"] == "No such file or directory"
    assert model.section(Question(model=str(tmp_path)))["why"] == "config.json: No such file or directory"
    (tmp_path / "config.json").write_text("{}")
    assert model.section(Question(model=str(tmp_path)))["why"] == "there are no weights in it"


def test_where_a_folder_has_several_formats_only_the_one_that_is_loaded_must_be_whole(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    weights(folder / "consolidated.safetensors", bytes(64))
    (folder / "training_args.bin").write_bytes(b"x")
    found = model.section(Question(model=str(folder)))
    assert (found["why"], found["missing"], found["weights"]) == ("", [], ["1.safetensors", "2.safetensors"])
    for name in ("1.safetensors", "2.safetensors", "consolidated.safetensors"):
        (folder / name).unlink()
    assert model.section(Question(model=str(folder)))["why"] == "there are no weights in it"
    (folder / "pytorch_model-2.bin").write_bytes(b"x")
    assert model.section(Question(model=str(folder)))["missing"] == ["pytorch_model-1.bin"]


@pytest.mark.parametrize("names", [("params.json", "consolidated.safetensors"), ("llama.Q4_K_M.gguf",)])
def test_a_model_in_a_form_without_config_json_can_be_used(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        weights(tmp_path / name, bytes(64)) if name.endswith(".safetensors") else (tmp_path / name).write_text("{}")
    found = model.section(Question(model=str(tmp_path)))
    assert (found["why"], found["weights"]) == ("", [names[-1]])
