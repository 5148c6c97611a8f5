"""A slow link, simulated between emulated nodes for as long as they live: what a node sends keeps to a rate and arrives late.

`python -m ncclcheck.link INTERFACE RATE,DELAY PEER...` makes the link of the network it runs in slow, says `ready`, and undoes it at the
end of its input. A rate is kept by the kernel (tbf); a delay in user space (relay.py), as few kernels of containers have netem.
"""

from __future__ import annotations

import contextlib
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ncclcheck import interpreter
from ncclcheck.units import parse_seconds

READY_BOUND = 15.0  # seconds in which the link has become slow
UNDO_BOUND = 10.0  # seconds in which it is as it was
BURST_SECONDS = 0.002  # of the rate may leave at once
LEAST_BURST = 16384  # bytes; a timer that is late by some microseconds must not cost a fast link its rate
_BITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_EXAMPLE = "RATE,DELAY such as 1Gbit,2ms, or one of the two"


class Refused(OSError):
    """This machine cannot simulate a link; one line says why."""


@dataclass(frozen=True, slots=True)
class Link:
    """What every node's way to the others is limited to. `rate` is bytes per second, `delay` seconds each way; 0: not limited."""

    rate: float = 0.0
    delay: float = 0.0

    def __str__(self) -> str:
        rate, delay = _rate_text(self.rate), f"{self.delay * 1e3:g}ms"
        return ",".join([rate] * bool(self.rate) + [delay] * bool(self.delay))


def parse(text: str) -> Link:
    """`1Gbit,2ms` -> Link(125e6, 0.002). Raises ValueError."""
    rate = delay = 0.0
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)bit(?:/s)?", part, re.IGNORECASE)
        if match and not rate:
            rate = float(match[1]) * _BITS[match[2].lower()] / 8
        elif not match and not delay and re.search(r"s$", part):
            delay = parse_seconds(part)
        else:
            raise ValueError(f"{text!r} is not {_EXAMPLE}")
    if rate and not 1e4 <= rate <= 12.5e9:
        raise ValueError(f"{text!r}: a rate is between 80kbit and 100Gbit")
    if delay > 2:
        raise ValueError(f"{text!r}: a delay is at most 2s")
    return Link(rate, delay)


@contextlib.contextmanager
def simulated(link: Link, interface: str, peers: Sequence[str]) -> Iterator[None]:
    """In this process's network: what leaves by `interface` keeps to the link's rate, and what is for `peers` to its delay, too.

    On leaving everything is as it was. Raises CannotInject where the machine cannot do it.
    """
    from ncclcheck import obstruct, relay

    with contextlib.ExitStack() as undo:
        if link.rate:
            burst = max(LEAST_BURST, round(link.rate * BURST_SECONDS))
            undo.enter_context(obstruct.throttled(interface, round(link.rate), burst))
        if link.delay:
            undo.enter_context(relay.delayed(interface, peers, link.delay))
        yield


@contextlib.contextmanager
def kept(link: Link | None, interface: str, peers: Sequence[str]) -> Iterator[None]:
    """The same, kept by a process of its own, which undoes it as soon as this process is gone. Raises Refused."""
    if link is None or not peers:
        yield
        return
    command = interpreter.module("ncclcheck.link", interface, str(link), *peers)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin and process.stdout and process.stderr
        try:
            ready = select.select([process.stdout], [], [], READY_BOUND)[0]
            said = process.stdout.readline().decode("utf-8", "replace").strip() if ready else f"nothing happened within {READY_BOUND:g} s"
            if said != "ready":
                raise Refused(f"cannot simulate a link: {said or process.stderr.read(500).decode('utf-8', 'replace').strip()}")
            yield
            if process.poll() is not None:
                raise Refused(f"the simulated link {link} ended before the run (exit code {process.returncode}): what was measured was not over it")
        finally:
            process.stdin.close()
            try:
                process.wait(UNDO_BOUND)
            except subprocess.TimeoutExpired:
                process.kill()  # the node's network ends with the node, and what it did to it


def _rate_text(rate: float) -> str:
    bits = rate * 8
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if bits >= size:
            return f"{bits / size:g}{unit}bit"
    return f"{bits:g}bit"


def main(arguments: Sequence[str]) -> int:
    """0 once the link is as it was; 1 where it could not be made slow."""
    from ncclcheck.fault import CannotInject

    interface, text, *peers = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of the input is the end
    try:
        with simulated(parse(text), interface, peers):
            print("ready", flush=True)
            sys.stdin.buffer.read()
    except CannotInject as reason:
        print(f"{reason}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
