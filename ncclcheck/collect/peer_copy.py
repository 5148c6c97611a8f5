"""Copies a pattern from each of this node's GPUs to the others by peer access, and looks at what arrives.

Drivers announce peer access that does not work, and then NCCL hangs or computes with wrong numbers. The copies are made with CUDA's driver
library by a child process, which says what it begins before it begins it: where it hangs, that is known too. GPUs that somebody uses are
left alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ncclcheck import interpreter, parent
from ncclcheck.collect import host, patient
from ncclcheck.survey import Question

BOUND = 5.0  # seconds for the child
LEAST = 1.5  # seconds that must be left when a copy begins: one that has less and does not end may only be late
AMOUNT = 4 << 20  # bytes of one copy
OK, WRONG = "ok", "wrong"
_LIBRARY = "libcuda.so.1"
_NO_TIME = "there was no time for all of them"
_ERRORS = {2: "out of memory", 46: "device unavailable", 217: "peer access is not supported", 700: "illegal address", 711: "too many peers"}
_ALREADY = 704  # CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
_BYTES = ctypes.c_size_t
_POINTER = ctypes.c_uint64  # CUdeviceptr
_CONTEXT = ctypes.c_void_p


def section(question: Question) -> dict[str, Any]:
    """`copies` ({"gpus": [from, to], "result"}), `hung` (the pair at which it stood), `skipped` or `why` there are none."""
    if not host.nvidia_present():
        return {"copies": [], "skipped": "no GPU"}
    if {**question.environment, **os.environ}.get("NCCL_P2P_DISABLE", "0").strip() not in ("", "0"):
        return {"copies": [], "skipped": "NCCL_P2P_DISABLE is set: NCCL uses no peer access"}
    gpus = host.gpus()
    if len(gpus) < 2:
        return {"copies": [], "skipped": f"{len(gpus)} GPU in sight, and a copy needs two"}
    if busy := [str(gpu["index"]) for gpu in gpus if gpu["processes"]]:
        return {"copies": [], "skipped": f"GPU {', '.join(busy)} is in use"}
    return copies([int(gpu["index"]) for gpu in gpus])


def copies(gpus: Sequence[int], environ: Mapping[str, str] | None = None, seconds: float = BOUND) -> dict[str, Any]:
    """What the child says, which sees these GPUs as number 0, 1, ... of CUDA."""
    environ = {**(os.environ if environ is None else environ), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    late = False
    try:
        said = patient.output(interpreter.module(__name__, str(len(gpus)), str(time.monotonic() + seconds)), seconds, environ)
    except patient.Late as error:
        said, late = error.said, True
    except OSError as error:
        return {"copies": [], "why": str(error)}
    lines = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
    results = [{"gpus": [gpus[place] for place in line["pair"]], "result": line["result"]} for line in lines if "result" in line]
    found: dict[str, Any] = {"copies": results}
    begun = next((line for line in reversed(lines) if "pair" in line), None)
    if late and begun and "result" not in begun and begun["step"] == "copy":
        found["hung"] = {"gpus": [gpus[place] for place in begun["pair"]], "seconds": begun["left"]}
    elif late:
        found["why"] = f"no answer in {seconds:g} s" + (f" ({lines[-1].get('step')})" if lines else "")
    elif why := next((line["why"] for line in lines if "why" in line), None):
        found["why"] = why
    return found


class _Failed(Exception):
    """CUDA refused; args: its number."""


class _Cuda:
    """As much of CUDA's driver library as a copy needs. Raises OSError where it is not there."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        self._contexts: dict[int, Any] = {}
        self("cuInit", ctypes.c_uint(0))

    def __call__(self, function: str, *args: Any) -> None:
        """Raises _Failed."""
        if number := int(getattr(self._library, function)(*args)):
            raise _Failed(number)

    def device(self, place: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self("cuDeviceGet", ctypes.byref(device), ctypes.c_int(place))
        return device

    def context(self, place: int) -> Any:
        """The GPU's own context, made when it is first wanted, and made current."""
        if place not in self._contexts:
            context = _CONTEXT()
            self("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device(place))
            self._contexts[place] = context
        self("cuCtxSetCurrent", self._contexts[place])
        return self._contexts[place]

    def peers(self, one: int, other: int) -> bool:
        """Whether the driver says that one may use the other's memory."""
        able = ctypes.c_int()
        self("cuDeviceCanAccessPeer", ctypes.byref(able), self.device(one), self.device(other))
        return bool(able.value)

    def allow(self, one: int, other: int) -> None:
        """Let one use the other's memory."""
        context = self.context(other)
        self.context(one)
        try:
            self("cuCtxEnablePeerAccess", context, ctypes.c_uint(0))
        except _Failed as failed:
            if failed.args[0] != _ALREADY:
                raise

    def memory(self, place: int) -> Any:
        """Bytes on a GPU, all of them 0."""
        self.context(place)
        address = _POINTER()
        self("cuMemAlloc_v2", ctypes.byref(address), _BYTES(AMOUNT))
        self("cuMemsetD8_v2", address, ctypes.c_ubyte(0), _BYTES(AMOUNT))
        return address

    def copy(self, one: int, other: int, pattern: bytes) -> bytes:
        """Put the pattern on one GPU, copy it to the other, and fetch it from there."""
        here, there = self.memory(one), self.memory(other)
        self.context(one)
        self("cuMemcpyHtoD_v2", here, ctypes.c_char_p(pattern), _BYTES(AMOUNT))
        self("cuMemcpyPeer", there, self.context(other), here, self.context(one), _BYTES(AMOUNT))
        self("cuCtxSynchronize")
        self.context(other)
        self("cuCtxSynchronize")
        arrived = ctypes.create_string_buffer(AMOUNT)
        self("cuMemcpyDtoH_v2", arrived, there, _BYTES(AMOUNT))
        for place, address in ((one, here), (other, there)):
            self.context(place)
            self("cuMemFree_v2", address)
        return arrived.raw


def _work(count: int, until: float) -> Iterator[dict[str, Any]]:
    """`until`: when this process will be ended, by the clock that all processes share."""
    yield {"step": "CUDA starts"}
    try:
        cuda = _Cuda()
    except (OSError, _Failed) as error:
        yield {"why": f"{_LIBRARY}: {_text(error)}"}
        return
    for one, other in _pairs(count):
        if until - time.monotonic() < LEAST:
            yield {"why": _NO_TIME}
            return
        yield {"pair": [one, other], "step": "prepare"}
        try:
            if not cuda.peers(one, other):
                yield {"pair": [one, other], "result": "no peer access"}
                continue
            cuda.allow(one, other)
            cuda.allow(other, one)
            pattern = random.Random(f"{one}-{other}").randbytes(AMOUNT)
            if (left := until - time.monotonic()) < LEAST:
                yield {"why": _NO_TIME}
                return
            yield {"pair": [one, other], "step": "copy", "left": round(left, 1)}
            yield {"pair": [one, other], "result": OK if cuda.copy(one, other, pattern) == pattern else WRONG}
        except _Failed as failed:
            yield {"pair": [one, other], "result": _text(failed)}


def _pairs(count: int) -> list[tuple[int, int]]:
    """Each direction of each pair; neighbours first, since there is little time."""
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    return sorted(pairs, key=lambda pair: (abs(pair[0] - pair[1]), min(pair), pair))


def _text(error: Exception) -> str:
    if isinstance(error, _Failed):
        number = error.args[0]
        return f"CUDA error {number}" + (f" ({_ERRORS[number]})" if number in _ERRORS else "")
    return str(error)


if __name__ == "__main__":
    parent.follow()
    for line in _work(int(sys.argv[1]), float(sys.argv[2])):
        print(json.dumps(line), flush=True)
