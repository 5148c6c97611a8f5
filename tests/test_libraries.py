"""Libraries: which NCCL the loader takes is found as the loader finds it, without loading anything, and what does not fit together is named."""

from __future__ import annotations

import ctypes.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import elves
import machines
import pytest
from machines import faults, node, said, titles

from ncclcheck.collect import elf, libraries
from ncclcheck.model import Fact
from ncclcheck.preflight.libraries import judge
from ncclcheck.survey import Question

RPATH = "$ORIGIN/../../nvidia/nccl/lib:$ORIGIN"
VERSION = "__version__ = '{0}'\ndebug = False\ncuda: Optional[str] = {1}\nhip: Optional[str] = None\n"


class Site:
    """A folder of installed packages: torch for CUDA with its NCCL, as NVIDIA's and PyTorch's wheels lay them out."""

    def __init__(self, folder: Path) -> None:
        self.root, self.path = folder / "root", folder / "site-packages"
        self.root.mkdir()
        self.path.mkdir()
        self.own = self.path / "nvidia/nccl/lib/libnccl.so.2"

    def torch(self, version: str = "2.11.0+cu130", cuda: str | None = "13.0", **how: Any) -> None:
        (self.path / "torch/lib").mkdir(parents=True)
        (self.path / "torch/version.py").write_text(VERSION.format(version, repr(cuda)))
        if cuda:
            how = {"rpath": RPATH, "needed": ["libc10.so", "libnccl.so.2"], "takes": ["ncclAllReduce", "cudaMalloc"], **how}
            elves.library(self.path / "torch/lib/libtorch_cuda.so", **how)
            elves.nccl(self.own, "2.28.9")

    def install(self, name: str, version: str, *requires: str) -> None:
        folder = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Requires-Dist: {line}\n" for line in requires]
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}\n")

    def read(self, **environ: str) -> dict[str, Any]:
        return libraries.read(environ, [self.path], self.root)

    def judged(self, devices: dict[str, Any] | None = None, **environ: str) -> list[Fact]:
        return said(judge, node(libraries=self.read(**environ), **({"devices": devices} if devices else {})))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# -- the loader --------------------------------------------------------------------------------------------------------


def test_libraries_that_this_process_loaded_are_found_where_it_found_them() -> None:
    mapped = set(re.findall(r"/\S+\.so\.\d+\S*$", Path("/proc/self/maps").read_text(), re.M))
    checked = 0
    for path in map(Path, mapped):
        soname = elf.read(path).soname
        found = elf.find(soname, {})
        if found and soname.startswith(("libc.", "libm.", "libpthread.", "libdl.", "libz.")):
            assert os.path.samefile(found[0], path), (soname, found)
            checked += 1
    assert checked
    assert elf.symbols(Path(mapped.pop()), "no_such_symbol", missing=True) == set()


def test_symbols_of_the_c_library_are_read_from_its_file() -> None:
    name = ctypes.util.find_library("c")
    assert name
    found = elf.find(name, {})
    assert found
    assert {"malloc", "mallopt"} <= elf.symbols(found[0], "mallo", missing=False)
    assert elf.search(found[0], rb"GNU C Library|glibc|musl")


def test_rpath_is_searched_before_the_environment_and_runpath_after_it(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        elves.library(folder / "libx.so", soname="libx.so")
    environ = {"LD_LIBRARY_PATH": f"/nowhere:{theirs}"}
    before = elf.read(elves.library(tmp_path / "a.so", rpath=str(mine), needed=["libx.so"]))
    after = elf.read(elves.library(tmp_path / "b.so", runpath=str(mine), needed=["libx.so"]))
    both = elf.read(elves.library(tmp_path / "c.so", runpath="/nowhere", rpath=str(mine), needed=["libx.so"]))
    assert elf.find("libx.so", environ, before, tmp_path) == (mine / "libx.so", "its RPATH")
    assert elf.find("libx.so", environ, after, tmp_path) == (theirs / "libx.so", "LD_LIBRARY_PATH")
    assert elf.find("libx.so", {}, after, tmp_path) == (mine / "libx.so", "its RUNPATH")
    assert elf.find("libx.so", {}, both, tmp_path) is None


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 200, b"\x7fELF\x01\x01" + bytes(100)])
def test_a_file_that_is_no_library_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.so").write_bytes(data)
    with pytest.raises(ValueError):
        elf.read(tmp_path / "x.so")


# -- NCCL --------------------------------------------------------------------------------------------------------------


def test_the_nccl_of_torchs_own_wheels_is_found_and_nothing_is_said(site: Site) -> None:
    site.torch()
    found = site.read()
    assert found["torch"] == {"version": "2.11.0+cu130", "cuda": "13.0", "hip": None, "folder": str(site.path / "torch")}
    assert (found["nccl"]["version"], found["nccl"]["cuda"], found["nccl"]["why"], found["others"]) == ("2.28.9", "13.0", "its RPATH", [])
    assert site.judged(machines.section(machines.recording())) == []


def test_a_preloaded_nccl_of_another_release_is_named(site: Site, tmp_path: Path) -> None:
    site.torch()
    other = elves.nccl(tmp_path / "usr/lib/libnccl.so.2.28.3", "2.28.3")
    facts = site.judged(LD_PRELOAD=str(other))
    assert faults(facts) == [("degraded", "nccl-version-mismatch")]
    assert f"gpu-07 loads NCCL 2.28.3 ({other}) by LD_PRELOAD, in place of torch's 2.28.9" in titles(facts)


def test_an_nccl_that_lacks_what_torch_takes_stops_a_launch(site: Site, tmp_path: Path) -> None:
    site.torch(takes=["ncclAllReduce", "ncclCommWindowRegister"])
    other = elves.nccl(tmp_path / "old/libnccl.so.2", "2.21.5")
    facts = site.judged(LD_PRELOAD=str(other))
    assert faults(facts) == [("fail", "library-missing")]
    assert "lacks ncclCommWindowRegister" in titles(facts)[0]


def test_ld_library_path_brings_another_nccl_in_only_past_a_runpath(site: Site, tmp_path: Path) -> None:
    other = elves.nccl(tmp_path / "old/libnccl.so.2", "2.21.5")
    site.torch()
    assert faults(site.judged(LD_LIBRARY_PATH=str(other.parent))) == []
    assert any("a second NCCL is on gpu-07: NCCL 2.21.5" in title for title in titles(site.judged(LD_LIBRARY_PATH=str(other.parent))))
    elves.library(site.path / "torch/lib/libtorch_cuda.so", runpath=RPATH, needed=["libnccl.so.2"], takes=["ncclAllReduce"])
    assert faults(site.judged(LD_LIBRARY_PATH=str(other.parent))) == [("degraded", "nccl-version-mismatch")]


def test_no_nccl_at_all_stops_a_launch(site: Site) -> None:
    site.torch()
    site.own.unlink()
    assert faults(site.judged()) == [("fail", "library-missing")]


def test_an_nccl_for_vllm_that_is_not_there_or_another_is_named(site: Site, tmp_path: Path) -> None:
    site.torch()
    assert faults(site.judged(VLLM_NCCL_SO_PATH="/nowhere/libnccl.so.2")) == [("fail", "library-missing")]
    other = elves.nccl(tmp_path / "libnccl.so.2", "2.27.3")
    assert faults(site.judged(VLLM_NCCL_SO_PATH=str(other))) == [("degraded", "nccl-version-mismatch")]


def test_an_nccl_that_cannot_be_read_is_not_called_fine(site: Site) -> None:
    site.torch()
    site.own.write_bytes(b"torn")
    assert [fact.kind for fact in site.judged()] == ["unread"]


# -- what else does not fit --------------------------------------------------------------------------------------------


def test_a_plugin_that_is_asked_for_and_not_there_is_named(site: Site, tmp_path: Path) -> None:
    assert faults(site.judged(NCCL_NET_PLUGIN="aws-ofi")) == [("degraded", "net-plugin")]
    elves.library(tmp_path / "plugins/libnccl-net-aws-ofi.so")
    assert faults(site.judged(NCCL_NET_PLUGIN="aws-ofi", LD_LIBRARY_PATH=str(tmp_path / "plugins"))) == []
    assert faults(site.judged(NCCL_NET_PLUGIN="none")) == []


def test_a_library_that_shares_gpus_is_named_wherever_it_is_preloaded(site: Site) -> None:
    assert faults(site.judged(LD_PRELOAD="/usr/local/vgpu/libvgpu.so")) == [("degraded", "gpu-interposer-library")]
    (site.root / "etc").mkdir()
    (site.root / "etc/ld.so.preload").write_text("# HAMi\n/usr/local/vgpu/libvgpu.so\n")
    (fact,) = [fact for fact in site.judged() if fact.kind != "note"]
    assert (fact.get("cause"), fact.get("evidence")) == ("gpu-interposer-library", ["/etc/ld.so.preload: /usr/local/vgpu/libvgpu.so"])


def test_what_is_preloaded_and_harmless_is_a_note(site: Site, tmp_path: Path) -> None:
    there = elves.library(tmp_path / "libjemalloc.so.2")
    facts = site.judged(LD_PRELOAD=f"{there}:/nowhere/libgone.so")
    assert faults(facts) == []
    assert len([title for title in titles(facts) if "LD_PRELOAD" in title]) == 2


def test_a_driver_that_is_too_old_for_torchs_cuda_stops_a_launch(site: Site) -> None:
    site.torch()
    old = machines.section(machines.recording(driver="570.86.15", cuda_driver=12080))
    facts = site.judged(old)
    assert faults(facts) == [("fail", "driver-cuda-mismatch")]
    assert "the NVIDIA driver 570.86.15 of gpu-07 is too old for torch 2.11.0+cu130 (CUDA 13.0); 580 or newer is needed" in titles(facts)


def test_an_older_minor_release_of_cuda_is_no_fault(site: Site) -> None:
    site.torch("2.11.0+cu128", "12.8")
    assert faults(site.judged(machines.section(machines.recording(driver="535.129.03", cuda_driver=12020)))) == []


def test_forward_compatibility_is_a_note_and_a_strange_libcuda_is_not(site: Site, tmp_path: Path) -> None:
    site.torch()
    old = machines.section(machines.recording(driver="570.86.15", cuda_driver=12080))
    compat, other = tmp_path / "cuda/compat", tmp_path / "other"
    for folder, version in ((compat, "580.95.05"), (other, "560.35.03")):
        elves.library(folder / f"libcuda.so.{version}")
        (folder / "libcuda.so.1").symlink_to(f"libcuda.so.{version}")
    facts = site.judged(old, LD_LIBRARY_PATH=str(compat))
    assert faults(facts) == []
    assert any("forward compatibility" in title for title in titles(facts))
    assert faults(site.judged(machines.section(machines.recording()), LD_LIBRARY_PATH=str(other))) == [("fail", "driver-cuda-mismatch")]


def test_a_libcuda_whose_name_is_no_drivers_version_is_not_compared(site: Site, tmp_path: Path) -> None:
    site.torch()
    elves.library(tmp_path / "lib/libcuda.so.1.1")
    (tmp_path / "lib/libcuda.so.1").symlink_to("libcuda.so.1.1")
    assert site.read(LD_LIBRARY_PATH=str(tmp_path / "lib"))["libcuda"]["version"] is None
    assert faults(site.judged(machines.section(machines.recording()), LD_LIBRARY_PATH=str(tmp_path / "lib"))) == []


def test_a_torch_without_code_for_the_gpu_stops_a_launch(site: Site) -> None:
    site.torch("2.5.0+cu124", "12.4")
    blackwell = machines.section(machines.recording(**{f"compute_capability_{gpu}": [10, 0] for gpu in range(2)}))
    assert faults(site.judged(blackwell)) == [("fail", "gpu-arch-not-built")]


@pytest.mark.parametrize(("cuda", "capability", "fault"), [
    ("11.0", [8, 6], False), ("11.1", [8, 9], False), ("12.8", [10, 3], False), ("12.8", [12, 1], False),
    ("10.2", [8, 0], True), ("11.7", [9, 0], True), ("12.6", [10, 3], True), ("12.6", [12, 0], True), ("13.0", [7, 0], True),
])  # fmt: skip
def test_code_for_the_first_of_a_generation_runs_on_the_later_ones(site: Site, cuda: str, capability: list[int], fault: bool) -> None:
    site.torch("2.5.0", cuda)
    there = machines.section(machines.recording(**{f"compute_capability_{gpu}": capability for gpu in range(2)}))
    assert (("fail", "gpu-arch-not-built") in faults(site.judged(there))) is fault


def test_a_gpu_without_code_that_no_rank_takes_is_a_note(site: Site) -> None:
    site.torch("2.8.0+cu130", "13.0")
    there = machines.section(machines.recording(compute_capability_1=[6, 1]))
    facts = said(judge, node(libraries=site.read(), devices=there), replace(machines.JOB, nproc_per_node=1))
    assert faults(facts) == [] and any("compute capability 6.1" in title and "no rank uses it" in title for title in titles(facts))
    assert faults(site.judged(there)) == [("fail", "gpu-arch-not-built")]


def test_a_torch_for_the_cpu_beside_gpus_stops_a_launch(site: Site) -> None:
    site.torch("2.13.0+cpu", None)
    assert faults(site.judged(machines.section(machines.recording()))) == [("fail", "driver-not-working")]
    assert faults(site.judged()) == []


@pytest.mark.parametrize(
    ("torch", "name", "version", "requires", "fault"),
    [
        (("2.13.0+cpu", None), "torchvision", "0.28.0", "torch==2.13.0", True),
        (("2.13.0+cpu", None), "torchvision", "0.28.0+cpu", "torch==2.13.0", False),
        (("2.11.0+cu130", "13.0"), "torchaudio", "2.10.0", "torch==2.10.0", True),
        (("2.11.0+cu130", "13.0"), "torchaudio", "2.11.0", "torch==2.11.0", False),
        (("2.11.0+cu130", "13.0"), "torchcodec", "0.14.0+cpu", "numpy", True),
        (("2.11.0+cu130", "13.0"), "vllm", "0.24.0", "torch==2.10.0", True),
        (("2.11.0+cu130", "13.0"), "vllm", "0.24.0", "torch==2.11.0", False),
        (("2.11.0+cu130", "13.0"), "vllm", "0.24.0", 'torch==2.9.0; extra == "old"', False),
    ],
)
def test_builds_that_belong_to_another_torch_are_named(
    site: Site, torch: tuple[str, str | None], name: str, version: str, requires: str, fault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    site.torch(*torch)
    site.install(name, version, requires)
    assert faults(site.judged()) == ([("degraded", "version-mismatch")] if fault else [])


def test_this_machines_libraries_are_read_without_importing_torch_and_are_not_at_fault() -> None:
    script = (
        "import json, sys; from ncclcheck.collect import libraries; from ncclcheck.survey import Question;"
        "print(json.dumps(libraries.section(Question()))); assert 'torch' not in sys.modules and 'pynvml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, timeout=60)
    assert faults(said(judge, node(libraries=libraries.section(Question())))) == []
