"""Have another server listen on the rendezvous port of the master before torchrun does."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from ncclcheck import parent

EXPECT = "port-in-use"
SAFE = True
STRIKES = "launcher"
BLAMES = "master"


def launcher(arguments: Sequence[str]) -> None:
    """Returns once a process of its own listens there; that one ends with torchrun."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
    address, port = given["master-addr"], int(given["master-port"])
    listens, told = os.pipe()
    if os.fork() == 0:
        parent.follow()
        with socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
            os.write(told, b"x")
            while True:
                server.accept()[0].close()
    os.read(listens, 1)
