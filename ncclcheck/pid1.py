"""The first process of an emulated node: how it is made, what its maker and it tell each other, and its end, which is the node's."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from ncclcheck import namespaces

SETUP_BOUND = 30.0  # seconds for all nodes to come up; 64 take 2 s on 2 cores
CRASHED = 70  # exit code of a node whose body raised (EX_SOFTWARE)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None)

Setup = Callable[[], None]  # makes a host of the new namespaces
Body = Callable[[], int]  # what the node does; its exit code


@dataclass(frozen=True, slots=True)
class Pid1:
    """A node's first process and our end of the socket to it. It waits for a word before its setup and one before its body."""

    host: str
    pid: int
    link: socket.socket

    def go_on(self) -> None:
        """Let it do what comes next."""
        self.link.send(b"go on")

    def wait_for_setup(self) -> None:
        """Returns when its setup is done. Raises OSError for what went wrong there, TimeoutError after 30 s."""
        _hear(self.host, self.link)


def adopt() -> None:
    """From now on, what a process that we started leaves behind is our own child."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def spawn(host: str, setup: Setup, body: Body, others: Iterable[Pid1]) -> Pid1:
    """Fork the first process of a node, beside `others`. The caller has called `adopt`; raises OSError where the kernel refuses.

    unshare(CLONE_NEWPID) makes a process's next child pid 1, and can be done once. So a process between us and the node
    unshares, forks and ends; the node becomes our own child.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(SETUP_BOUND)
    between = os.fork()
    if between == 0:
        for link in (ours, *(other.link for other in others)):  # holding an end of ours, a node would not see us go
            link.close()
        _between(theirs, setup, body)
    theirs.close()
    try:
        return Pid1(host, int(_hear(host, ours)), ours)
    except BaseException:
        ours.close()
        raise
    finally:
        os.kill(between, signal.SIGKILL)
        os.waitpid(between, 0)


def _between(link: socket.socket, setup: Setup, body: Body) -> NoReturn:
    try:
        namespaces.leave_host()
        if pid := os.fork():
            _tell(link, text=str(pid))
        else:
            _live(link, setup, body)
    except OSError as error:
        _tell(link, error)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(CRASHED)


def _live(link: socket.socket, setup: Setup, body: Body) -> NoReturn:
    """The life of pid 1. When it ends, the kernel kills whatever else runs in the node."""
    try:
        _await(link)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # of the parent that has just adopted us
        os.setsid()  # Ctrl-C comes from our parent, once
        setup()
        _tell(link)
        _await(link)  # were our parent gone before prctl, this would see it
    except OSError as error:
        _tell(link, error)
        os._exit(CRASHED)
    link.close()
    code = CRASHED
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _leave)  # the default action does not apply to pid 1
        code = body()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code & 0xFF)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _await(link: socket.socket) -> None:
    if not link.recv(16):
        os._exit(CRASHED)  # our parent is gone


def _tell(link: socket.socket, error: OSError | None = None, text: str = "") -> None:
    """To our maker: an error number, 0 for none, and a text."""
    with contextlib.suppress(OSError):  # it is gone: then so are we
        link.send(f"{error.errno if error else 0} {namespaces.in_words(error) if error else text}".encode())


def _hear(host: str, link: socket.socket) -> str:
    try:
        code, _, text = link.recv(4096).decode().partition(" ")
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"not up within {SETUP_BOUND:g} s", host) from None
    if code != "0":
        raise OSError(int(code or errno.ECHILD), text or "ended while it was set up", host)
    return text
