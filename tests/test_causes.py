"""Whatever cause a finding may name, there is an explanation of it and something to do about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ncclcheck
from ncclcheck import registry, triage
from ncclcheck.causes import CAUSES

PACKAGE = Path(ncclcheck.__file__).parent
SOURCES = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/*.py")]  # a pattern of this form follows the symbolic links to probes and faults
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def emitted(source: str) -> set[str]:
    """Every cause that this source gives to a finding or a fact.

    Looked at are the values of a dictionary's key "cause", and the arguments of all calls of something that has a parameter or a field
    `cause`: Finding, and whatever of that kind the source itself defines. A variable stands for every cause-like string of its function.
    """
    tree = ast.parse(source)
    positions = {"Finding": 0} | {node.name: at for node in ast.walk(tree) if (at := _position(node)) is not None}
    return {cause for value, function in _values(tree, None, positions) for cause in _causes(value, function)}


def _position(node: ast.AST) -> int | None:
    """Where `cause` stands among a function's parameters or a class's fields."""
    names: list[str] = []
    if isinstance(node, Function):
        names = [argument.arg for argument in node.args.args]
    elif isinstance(node, ast.ClassDef):
        names = [field.target.id for field in node.body if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)]
    return names.index("cause") if "cause" in names else None


def _values(node: ast.AST, function: Function | None, positions: dict[str, int]) -> Iterator[tuple[ast.expr, Function | None]]:
    """The expressions that are used as a cause, each with the innermost function it stands in."""
    if isinstance(node, Function):
        function = node
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from ((value, function) for key, value in pairs if isinstance(key, ast.Constant) and key.value == "cause")
    if isinstance(node, ast.Call):
        yield from ((keyword.value, function) for keyword in node.keywords if keyword.arg == "cause")
        at = positions.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if at is not None and at < len(node.args):
            yield node.args[at], function
    for child in ast.iter_child_nodes(node):
        yield from _values(child, function, positions)


def _causes(value: ast.expr, function: Function | None) -> set[str]:
    variable = isinstance(value, ast.Name) and function is not None and _position(function) is None
    constants = (node.value for node in ast.walk(function if variable and function else value) if isinstance(node, ast.Constant))
    return {text for text in constants if isinstance(text, str) and SLUG.fullmatch(text)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_cause_that_the_code_can_emit_is_explained(path):
    assert emitted(path.read_text(encoding="utf-8")) <= CAUSES.keys()


def test_the_scan_sees_a_cause_in_each_form_in_which_it_is_emitted():
    """If a form changes, the scan must change with it, or the test above proves nothing."""
    forms = {
        "rules/gpu_busy.py": "gpu-busy",  # an argument of Finding
        "insufficient.py": "insufficient-evidence",
        "coordinator.py": "probe-crashed",  # a fact's field
        "pattern.py": "data-corruption",
        "vllm_traffic.py": "network-bypassed",  # an argument of the module's own function
        "probes/wiring.py": "nccl-version-mismatch",  # by way of a variable
    }
    assert {name: cause for name, cause in forms.items() if cause not in emitted((PACKAGE / name).read_text(encoding="utf-8"))} == {}


def test_a_rule_emits_the_cause_that_it_is_named_after_and_it_is_explained():
    """A rule's statements bear its name of themselves; what its check finds must."""
    for name in registry.names("rules"):
        slug = name.replace("_", "-")
        assert slug in CAUSES
        found = emitted((PACKAGE / "rules" / f"{name}.py").read_text(encoding="utf-8"))
        assert slug in found if hasattr(registry.load("rules", name), "check") else not found


def test_what_a_fault_must_be_found_as_and_what_leaves_a_verdict_open_is_explained():
    assert {registry.describe("faults", name).get("EXPECT") for name in registry.names("faults")} | triage.UNDECIDED <= CAUSES.keys()


@pytest.mark.parametrize("slug", list(CAUSES))
def test_a_cause_says_in_few_sentences_what_it_means_how_it_shows_and_what_to_type(slug):
    cause = CAUSES[slug]
    assert SLUG.fullmatch(slug)
    for text in (cause.meaning, cause.shows_as, cause.remedy):
        assert text[-1] == "." and text[0] != " " and "  " not in text and text.count("`") % 2 == 0
    assert 1 <= len(re.findall(r"[.?](?: |$)", cause.meaning)) <= 4
    assert "`" in cause.remedy, "nothing to type"


def test_a_cause_that_a_text_points_to_exists():
    """`ncclcheck probe X` and `--skip` in a remedy name what there is."""
    for cause in CAUSES.values():
        for probe in re.findall(r"ncclcheck probe ([a-z_]+)", cause.remedy):
            assert probe in registry.names("probes")
