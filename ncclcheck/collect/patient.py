"""Reads what may never answer (a process in uninterruptible I/O, a driver that hangs) from a thread that nobody has to wait for."""

from __future__ import annotations

import math
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
_REAPED = 0.5  # seconds in which a killed child is gone, unless it hangs in the kernel
_leaving = threading.Event()
_children: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()


class Late(TimeoutError):
    """A command gave no end in time; `said` is what it had printed until then."""

    def __init__(self, seconds: float, said: str) -> None:
        super().__init__(f"no answer in {seconds:g} s")
        self.said = said


def leave() -> None:
    """This program ends, and some of its threads may still work: end the commands that they run, and start no more."""
    with _lock:
        _leaving.set()
        for child in _children:
            child.kill()


def items(work: Callable[[], Iterable[T]], seconds: float, *, each: float = math.inf) -> Iterator[T]:
    """What `work` yields, one by one, for `seconds` altogether and at most `each` of them for one item.

    Raises TimeoutError when it is late, its thread then yields nothing more; raises what `work` raises.
    """
    done: queue.SimpleQueue[tuple[bool, T | Exception | None]] = queue.SimpleQueue()
    given_up = threading.Event()

    def run() -> None:
        try:
            for item in work():
                if given_up.is_set():
                    return
                done.put((True, item))
            done.put((False, None))
        except Exception as error:
            done.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    until = time.monotonic() + seconds
    try:
        while True:
            wait = min(each, until - time.monotonic())
            try:
                if wait <= 0:  # whoever takes the items may be what is slow
                    raise queue.Empty
                more, item = done.get(timeout=wait)
            except queue.Empty:
                raise TimeoutError(f"no answer in {min(each, seconds):g} s") from None
            if not more:
                if isinstance(item, Exception):
                    raise item
                return
            yield item  # type: ignore[misc]  # `more` says that it is an item
    finally:
        given_up.set()


def output(words: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> str:
    """What a command prints. Raises TimeoutError (Late), or OSError where it cannot be started or fails, with its own last line.

    A child that hangs in the kernel does not die when it is killed; it is not waited for.
    """
    with _lock:
        if _leaving.is_set():
            raise OSError("interrupted")
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
        _children.add(process)
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        process.kill()
        try:
            process.communicate(timeout=_REAPED)
        except subprocess.TimeoutExpired:
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        raise Late(seconds, (late.output or b"").decode("utf-8", "replace")) from None
    finally:
        with _lock:
            _children.discard(process)
    if process.returncode:
        said = (error or out).decode("utf-8", "replace").strip().splitlines()
        raise OSError(said[-1] if said else f"exit code {process.returncode}")
    return out.decode("utf-8", "replace")
