"""How a process ended is known though somebody else is its parent and has reaped it."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON, until

from ncclcheck.collect.processes import Exit

KERNEL = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
pytestmark = pytest.mark.skipif(KERNEL < (6, 15), reason=f"Linux {platform.release()} does not tell it: PIDFD_GET_INFO has exit codes from 6.15 on")

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(int(sys.stdin.readline() or 0))"], stdin=sys.stdin)
print(child.pid, flush=True)
child.wait()
print("reaped", flush=True)
"""


class Family:
    """A parent that waits for its child; the child leaves with the exit code that is written to it."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.child = int(self.say())

    def say(self, text: str = "") -> str:
        """Tell the child something; the parent's next line."""
        assert self.parent.stdin and self.parent.stdout
        self.parent.stdin.write(text)
        self.parent.stdin.flush()
        return self.parent.stdout.readline().strip()


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.parent.communicate("", timeout=SOON)  # the end of its input ends the child, too


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_grandchild_that_was_killed_and_reaped_is_known_to_have_been(family: Family, number: signal.Signals) -> None:
    end = Exit(family.child)
    assert end.code() is None
    os.kill(family.child, number)
    assert family.say() == "reaped"
    assert not Path(f"/proc/{family.child}").exists()
    assert until(end.code, SOON, "an exit code") == -number
    assert end.code() == -number
    end.close()
    assert end.code() is None


def test_the_exit_code_of_a_grandchild_that_was_reaped_is_known(family: Family) -> None:
    end = Exit(family.child)
    assert family.say("37\n") == "reaped"
    assert until(end.code, SOON, "an exit code") == 37
    end.close()


def test_a_grandchild_that_left_in_order_has_the_code_0(family: Family) -> None:
    end = Exit(family.child)
    assert family.say("0\n") == "reaped"
    until(lambda: end.code() is not None, SOON, "an exit code")
    assert end.code() == 0
    end.close()


def test_of_a_process_that_is_gone_already_nothing_is_known(family: Family) -> None:
    assert family.say("5\n") == "reaped"
    assert Exit(family.child).code() is None
