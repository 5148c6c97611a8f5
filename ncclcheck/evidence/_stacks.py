"""Makes facts of stacks, whoever dumped them: the frames innermost first, and the one in them that is the user's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ncclcheck.evidence._reads import Line
from ncclcheck.model import Fact

MAIN = "MainThread"
DEEPEST = 400  # frames that are kept of one thread; deeper is recursion or hostile
_LIBRARY = re.compile(r"(?:^|/)(?:site-packages|dist-packages|lib/python3\.\d+|lib64/python3\.\d+|torch|triton|numpy|debugpy|_pytest)/|^<|\(native\)")
_SOURCE = re.compile(r"\((?P<file>[^()]*\.(?:py|pyx|ipynb)|<ipython-input[^()]*?>)(?::\d+)?\)$")
_PACKAGE = re.compile(r"^(?:lib/python3\.\d+/)?(?P<top>\w+)(?:\.py$|/)")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as `function (file:line)`, and the line that it stands on."""

    text: str
    line: Line


def fact(frames: Sequence[Frame], *, thread: str, by: str, rank: int | None = None, host: str | None = None, pid: int | None = None) -> Fact:
    """A fact of kind "stack" (frames innermost first, own, thread, by), quoting the user's own frame. `frames` must not be empty."""
    mine = next((frame for frame in frames if is_own(frame.text)), None) or next((frame for frame in frames if not _standard(frame.text)), frames[0])
    fields = {"frames": [frame.text for frame in frames[:DEEPEST]], "own": mine.text, "thread": thread, "by": by}
    return mine.line.fact("stack", fields, rank=rank, host=host, pid=pid)


def is_own(frame: str) -> bool:
    """Whether a frame is neither the standard library's, nor native, nor of torch or another installed package."""
    source = _SOURCE.search(frame)
    return bool(source and not _LIBRARY.search(source["file"]) and not _standard(frame))


def _standard(frame: str) -> bool:
    """Whether it is native or of the standard library, which py-spy names without a folder (`threading.py`)."""
    source = _SOURCE.search(frame)
    if not source:
        return True
    package = _PACKAGE.match(source["file"])
    return bool(package and package["top"] in sys.stdlib_module_names) or bool(
        re.search(r"/lib(?:64)?/python3\.\d+/(?!(?:site|dist)-packages/)", source["file"])
    )
