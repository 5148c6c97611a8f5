"""What NVML says, live or played back: the answers to the questions of nvml_questions.py, as JSON has them.

`python -m ncclcheck.collect.nvml --record > machine.json` asks this machine everything, as the preflight does, and prints each answer or
refusal; `Nvml.played` answers from such a recording. A recording of a machine is thus a test of everything that is concluded from NVML.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from types import TracebackType
from typing import Any, Protocol, Self

from ncclcheck.collect.nvml_questions import GPU, LINK, MACHINE, PAIR, QUESTIONS, Ask

FORMAT = 1  # of a recording
MOST_LINKS = 36  # NVLinks of one GPU (nvml.h: NVML_NVLINK_MAX_LINKS)
USUAL_LINKS = 18  # asked for where NVML does not say how many there are
_FIELD_TYPES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t


class Refused(Exception):
    """NVML gave no answer to one question; its reason, in its words."""

    @property
    def lost(self) -> bool:
        """Whether it says that the GPU is gone, or no use before it is reset."""
        return str(self) in ("GPU is lost", "GPU requires restart", "GPU requires reset")


class Source(Protocol):
    """Where answers come from."""

    def answer(self, question: str, at: tuple[int, ...]) -> Any:
        """JSON-able. `at`: the GPU's number; the link's or the other GPU's. Raises Refused."""
        ...

    def close(self) -> None:
        """No more is asked."""
        ...


class Nvml:
    """NVML, asked by names: a context manager. What it refuses is None, except where `ask` is used."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.refusals: dict[str, str] = {}  # question and place -> why NVML gave no answer

    @classmethod
    def live(cls) -> Self:
        """This machine's. Raises OSError where it has no NVML, or one that does not work."""
        return cls(_Live())

    @classmethod
    def played(cls, recording: Mapping[str, Any]) -> Self:
        """A recording's. Raises OSError where it is one of an NVML that did not work."""
        return cls(_Played(recording))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._source.close()

    def ask(self, question: str, *at: int) -> Any:
        """The answer. Raises Refused."""
        return self._source.answer(question, at)

    def number(self, question: str, *at: int) -> int | None:
        """The answer, where it is a whole number."""
        return answer if isinstance(answer := self._told(question, at), int) else None

    def text(self, question: str, *at: int) -> str | None:
        """The answer, where it is text."""
        return answer if isinstance(answer := self._told(question, at), str) else None

    def numbers(self, question: str, *at: int) -> list[int] | None:
        """The answer, where it is a list of whole numbers."""
        answer = self._told(question, at)
        return answer if isinstance(answer, list) and all(isinstance(item, int) for item in answer) else None

    def table(self, question: str, *at: int) -> dict[str, Any] | None:
        """The answer, where it has several parts with names."""
        return answer if isinstance(answer := self._told(question, at), dict) else None

    def rows(self, question: str, *at: int) -> list[dict[str, Any]] | None:
        """The answer, where it is a list of such."""
        answer = self._told(question, at)
        return answer if isinstance(answer, list) and all(isinstance(item, dict) for item in answer) else None

    def links(self, gpu: int) -> int:
        """How many NVLinks are worth asking for."""
        count = self.number("nvlink_count", gpu)
        return min(USUAL_LINKS if count is None else count, MOST_LINKS)

    def _told(self, question: str, at: tuple[int, ...]) -> Any:
        try:
            return self.ask(question, *at)
        except Refused as reason:
            self.refusals[_key(question, at)] = str(reason)
            return None


class _Live:
    """The machine's own NVML, by nvidia-ml-py."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise OSError(f"NVML: {error}") from None
        self._nvml: Any = pynvml
        self._handles: dict[int, Any] = {}
        try:
            pynvml.nvmlInit()
        except Exception as error:  # NVMLError, or what a library that is no NVML leads to
            raise OSError(f"NVML: {error}") from None

    def answer(self, question: str, at: tuple[int, ...]) -> Any:
        ask = QUESTIONS[question]
        try:
            return ask.shape(self._call(ask, at, 2 if question in PAIR else 1))
        except self._nvml.NVMLError as error:
            raise Refused(str(error)) from None
        except AttributeError as error:  # a release of nvidia-ml-py that lacks it
            raise Refused(f"nvidia-ml-py: {error}") from None
        except Exception as error:  # it tells bindings and driver apart by exceptions of its own, which are no NVMLError
            raise Refused(f"nvidia-ml-py: {type(error).__name__}: {error}") from None

    def close(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            return  # what has failed need not be ended

    def _call(self, ask: Ask, at: tuple[int, ...], devices: int) -> Any:
        places: list[Any] = [self._handle(place) if number < devices else place for number, place in enumerate(at)]
        if ask.function == "fabric":
            return self._fabric(*places)
        if ask.function.startswith("field"):
            return self._field(places[0], ask.args[0], places[1] if len(places) > 1 else 0)
        return getattr(self._nvml, ask.function)(*places, *ask.args)

    def _handle(self, gpu: int) -> Any:
        if gpu not in self._handles:
            self._handles[gpu] = self._nvml.nvmlDeviceGetHandleByIndex(gpu)
        return self._handles[gpu]

    def _field(self, handle: Any, number: int, scope: int) -> Any:
        (field,) = self._nvml.nvmlDeviceGetFieldValues(handle, [(number, scope)])
        if field.nvmlReturn:
            raise self._nvml.NVMLError(field.nvmlReturn)
        return getattr(field.value, _FIELD_TYPES[field.valueType])

    def _fabric(self, handle: Any) -> dict[str, Any]:
        info = self._nvml.c_nvmlGpuFabricInfoV_t()
        self._nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
        cluster = "".join(f"{number & 0xFF:02x}" for number in info.clusterUuid)
        return {"state": info.state, "status": info.status, "clique": info.cliqueId, "health": info.healthMask, "cluster": cluster}


class _Played:
    """A recording's answers. What was not recorded is refused, as a question newer than the recording."""

    def __init__(self, recording: Mapping[str, Any]) -> None:
        if "error" in recording:
            raise OSError(str(recording["error"]))
        self._answers: Mapping[str, Any] = recording["answers"]

    def answer(self, question: str, at: tuple[int, ...]) -> Any:
        told: Mapping[str, Any] = self._answers.get(_key(question, at), {"refused": "it was not recorded"})
        if "refused" in told:
            raise Refused(told["refused"])
        return told["value"]

    def close(self) -> None:
        return


def record(nvml: Nvml) -> dict[str, dict[str, Any]]:
    """Every answer or refusal, by question and place: `p2p_read 0 1`."""
    answers: dict[str, dict[str, Any]] = {}

    def ask(questions: Mapping[str, Ask], *at: int) -> None:
        for question in questions:
            try:
                answers[_key(question, at)] = {"value": nvml.ask(question, *at)}
            except Refused as reason:
                answers[_key(question, at)] = {"refused": str(reason)}

    ask(MACHINE)
    count = nvml.number("count") or 0
    for gpu in range(count):
        ask(GPU, gpu)
        for link in range(nvml.links(gpu)):
            ask(LINK, gpu, link)
        for other in range(count):
            if other != gpu:
                ask(PAIR, gpu, other)
    return answers


def _key(question: str, at: tuple[int, ...]) -> str:
    return " ".join((question, *map(str, at)))


def _recording() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    head = {"format": FORMAT, "origin": "recorded", "bindings": metadata.version("nvidia-ml-py"), "time": now}
    try:
        with Nvml.live() as nvml:
            return {**head, "answers": record(nvml)}
    except OSError as error:
        return {**head, "error": str(error)}


def written(recording: Mapping[str, Any]) -> str:
    """A recording as text: one answer a line, so that two can be compared."""
    head = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in recording.items() if name != "answers"]
    answers = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in recording.get("answers", {}).items()]
    body = ['"answers": {\n' + ",\n".join(answers) + "\n }"] if answers else []
    return "{\n " + ",\n ".join([*head, *body]) + "\n}\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python -m ncclcheck.collect.nvml --record > FILE")
    sys.stdout.write(written(_recording()))
