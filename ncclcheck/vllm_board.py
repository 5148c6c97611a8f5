"""What the nodes of a deployment tell each other while it runs: one JSON note per node in the launch's store, and nothing that waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ncclcheck.vllm_server import RAY

MOST_TEXT = 400  # characters of what failed

Notes = Mapping[int, Mapping[str, Any]]


class Store(Protocol):
    """torch's key-value store, as far as it is used."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class Board:
    """This node's note, and those of all."""

    def __init__(self, store: Store, node: int, nodes: int) -> None:
        self._store, self._node, self._nodes = store, node, nodes
        self._mine: dict[str, Any] = {}
        self._last: dict[int, dict[str, Any]] = {}

    def post(self, **fields: Any) -> None:
        """Add to this node's note."""
        changed = {**self._mine, **fields}
        if changed != self._mine:
            self._mine = changed
            self._store.set(_key(self._node), msgspec.json.encode(changed).decode())

    def read(self) -> dict[int, dict[str, Any]]:
        """node -> its note, of those that have written one."""
        for node in range(self._nodes):
            if self._store.check([_key(node)]):
                self._last[node] = msgspec.json.decode(self._store.get(_key(node)), type=dict[str, Any])
        return dict(self._last)


def _key(node: int) -> str:
    return f"ncclcheck/serve/{node}"


def failed(notes: Notes, me: int) -> str:
    """What another node says that it saw itself; "" if none does."""
    return next((f"node {node}: {note['failed']}" for node, note in sorted(notes.items()) if node != me and note.get("failed")), "")


def underway(notes: Notes) -> Notes:
    """Without the nodes that Ray has not told to do anything yet: they wait for node 0."""
    return {node: note for node, note in notes.items() if node == 0 or note.get("phase") != RAY}


def behind(notes: Notes, order: Sequence[str]) -> list[int]:
    """The nodes in the earliest phase, where they differ; empty where all are in the same, or one has not said."""
    at = {node: order.index(note["phase"]) for node, note in underway(notes).items() if note.get("phase") in order}
    least = min(at.values(), default=0)
    return sorted(node for node, index in at.items() if index == least) if len(set(at.values())) > 1 else []
