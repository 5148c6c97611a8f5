"""Find plugins: a module in a folder; its docstring is its documentation, its constants are its metadata."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

KINDS = ("probes", "faults", "rules")


@dataclass(frozen=True, slots=True)
class Plugin:
    """What can be known of a plugin without importing it (a probe imports torch, and the agent must not)."""

    kind: str
    name: str
    doc: str
    constants: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The docstring's first line."""
        return self.doc.partition("\n")[0]

    def get(self, name: str, default: Any = None) -> Any:
        """A constant's value."""
        return self.constants.get(name, default)

    @property
    def needs(self) -> dict[str, str]:
        """What must be there, with the least version or "", of `NEEDS`: ("vllm", "ray>=2.55") is {"vllm": "", "ray": "2.55"}."""
        return {name: least for name, _, least in (need.partition(">=") for need in self.get("NEEDS", ()))}


def names(kind: str) -> list[str]:
    """The plugins of one kind ("probes", "faults", "rules"), sorted."""
    return sorted(path.stem for path in _folder(kind).glob("[a-z]*.py"))


def describe(kind: str, name: str) -> Plugin:
    """Read a plugin's docstring and literal constants. Raises KeyError for an unknown name."""
    path = _folder(kind) / f"{name}.py"
    if name not in names(kind):
        raise KeyError(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(target := node.targets[0], ast.Name) and target.id.isupper():
            try:
                constants[target.id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # computed when imported: not metadata
    return Plugin(kind, name, ast.get_docstring(tree) or "", constants)


def needs_ranks(probe: str) -> bool:
    """Whether a probe runs on the ranks; the others look at the nodes, and need no torch. Raises KeyError for an unknown name."""
    return bool(describe("probes", probe).get("WHERE") != "nodes")


def load(kind: str, name: str) -> ModuleType:
    """Import a plugin."""
    return importlib.import_module(f"ncclcheck.{kind}.{name}")


def load_rules() -> None:
    """Import every rule: whoever judges needs them all."""
    for name in names("rules"):
        load("rules", name)


def _folder(kind: str) -> Path:
    return Path(__file__).parent / kind
