"""What the variables that name network interfaces mean: which ones they choose, and why none of them may do. Pure.

NCCL takes beginnings of names, `=` before exact ones, and `^` before those that it must not take (NCCL's documentation, NCCL_SOCKET_IFNAME).
Gloo and TensorPipe take plain names, and Gloo fails where one of several is missing. A value of one character is ignored by NCCL and Gloo.
"""

from __future__ import annotations

from collections.abc import Sequence

NCCL, GLOO, TENSORPIPE = "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"
VARIABLES = (GLOO, NCCL, TENSORPIPE)
LOOPBACK = "lo"
_BY_ITSELF = ("ib", "^docker,lo,virbr", "docker", "lo", "virbr")  # where nothing is set, the first that chooses any (NCCL's socket.cc)


def chosen(variable: str, said: str, interfaces: Sequence[str]) -> list[str]:
    """The interfaces that a value chooses of those that there are, in their order; all where it says nothing."""
    if not _words(said) or len(said) < 2:
        return list(interfaces)
    if variable != NCCL:
        return [name for name in interfaces if name in _words(said)]
    without = said.startswith("^")
    said = said.removeprefix("^")
    exact, words = said.startswith("="), _words(said.removeprefix("="))
    return [name for name in interfaces if any(name == word if exact else name.startswith(word) for word in words) != without]


def picked(interfaces: Sequence[str]) -> list[str]:
    """What NCCL takes by itself of the interfaces that are up and have an address, in their order. It meets its peers at the first."""
    return next((found for rule in _BY_ITSELF if (found := chosen(NCCL, rule, interfaces))), [])


def mistake(variable: str, said: str, interfaces: Sequence[str], *, several: bool) -> str:
    """What is wrong with a value, as the end of a sentence that begins with it; empty for nothing. `several`: there are other nodes to reach."""
    words = _words(said)
    if not words or len(said) < 2:
        return ""
    if variable != NCCL and (odd := next((word for word in words if word[0] in "^="), "")):
        return f"which takes plain names only: {odd!r} is looked for as an interface of that very name"
    if variable == GLOO and "" in said.removesuffix(",").split(","):
        return "which has a comma too many: Gloo looks for an interface without a name"
    found = chosen(variable, said, interfaces)
    missing = [word for word in words if word not in interfaces] if variable == GLOO else []
    if said.startswith("^") and not found:
        return f"which leaves none of that node's interfaces: {', '.join(interfaces)}"
    if not found or missing:
        what = f" {', '.join(missing)}" if found else ""  # where some are there, which one is not
        return f"and that node has no such interface{what}: {', '.join(interfaces)}"
    if several and set(found) == {LOOPBACK}:
        return "which leads to no other node"
    return ""


def _words(said: str) -> list[str]:
    return [word for word in said.split(",") if word]
