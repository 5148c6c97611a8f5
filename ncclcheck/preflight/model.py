"""Whether every node has the model, all of it, and the same one, and whether an engine over them can serve it. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ncclcheck import alike, gathered
from ncclcheck.collect import hub
from ncclcheck.model import Fact
from ncclcheck.preflight import model_cut, model_described, model_kernels, model_memory
from ncclcheck.safe_text import word
from ncclcheck.survey import Job, Node, note, stop, unread

NAMED = 4  # files
_DENIED = "Permission denied"
_LOOKED_AT = (".json", ".txt", ".model", ".py", ".jinja", ".tiktoken", ".safetensors", ".bin", ".pt", ".gguf")
_READ = re.compile(  # what an engine reads beside the weights: configuration, tokenizer, and code that comes with a model
    r".*config\.json|params\.json|(?:model|consolidated)\.safetensors\.index\.json|tokenizer.*|tekken\.json|.*\.tiktoken|.*\.jinja"
    r"|vocab\.(?:json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json|sentencepiece.*|spiece\.model"
    r"|chat_template\.json|(?:configuration|modeling|tokenization|processing|image_processing)_.*\.py"
)

Section = Mapping[str, Any]
T = TypeVar("T")


def judge(nodes: Sequence[Node], job: Job) -> Iterator[Fact]:
    """Facts about the nodes that lack the model, have a part of it, or have another one; and about what an engine would make of it."""
    path = job.model or ""
    sections = [(node.host, section) for node in nodes if (section := node.read("model")) is not None]
    if silent := [node for node in nodes if node.read("model") is None]:
        yield unread(f"the model {path}", silent[0].why("model"), [node.host for node in silent], needed=True)
    yield from _lacking(path, [(host, str(section["why"])) for host, section in sections if section.get("why")], len(nodes))
    usable = [(host, section) for host, section in sections if not section.get("why")]
    weights = {str(name) for _, section in usable for name in section.get("weights", ())}
    yield from _broken(path, usable, weights)
    yield from _different(path, [(host, section.get("files", {})) for host, section in usable], weights)
    if described := next(((host, section) for host, section in usable if section.get("config")), None):
        model = model_described.read(*described)
        for judge_ in (model_cut, model_kernels, model_memory):
            yield from judge_.judge(model, nodes, job)


def _counts(name: str, weights: Collection[str]) -> bool:
    """Whether an engine reads it; others (a licence, weights in another format, what training left) may lack or differ."""
    return name in weights or bool(_READ.fullmatch(name))


def _lacking(path: str, reasons: Sequence[tuple[str, str]], count: int) -> Iterator[Fact]:
    others = count - len(reasons)
    tail = f"; {others} other node{'s have' if others != 1 else ' has'} it" if others else ""
    for reason, hosts in _same(reasons).items():
        title = f"{gathered.names(hosts)} cannot use the model {path}: {reason}{tail}"
        remedy = f"on {gathered.names(hosts)}: {_get(path, reason)}"
        yield stop("model-not-on-node", title, hosts, remedy, evidence=[f"{host}: {path}: {reason}" for host in hosts[: gathered.QUOTED]])


def _broken(path: str, sections: Sequence[tuple[str, Section]], weights: Collection[str]) -> Iterator[Fact]:
    wrong = [
        (
            host,
            (
                *(f"{name}: {why}" for name, why in section.get("broken", {}).items() if _counts(name, weights)),
                *(f"{name} is missing, and the index of the weights names it" for name in section.get("missing", ())),
            ),
        )
        for host, section in sections
    ]
    for lines, hosts in _same(wrong).items():
        if lines:
            title = f"{gathered.names(hosts)} has only a part of the model {path}: {_few(lines, '; ')}"
            evidence = [f"{hosts[0]}: {path}/{line}" for line in lines[: gathered.QUOTED]]
            denied = all(line.endswith(_DENIED) for line in lines)
            remedy = f"on {gathered.names(hosts)}: {_readable(path)}" if denied else _copy(hosts, path)
            yield stop("model-not-on-node", title, hosts, remedy, evidence=evidence)


def _different(path: str, files: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], weights: Collection[str]) -> Iterator[Fact]:
    """Files that some lack, and files that are not the same; each said once for the same nodes."""
    absent: dict[tuple[str, ...], list[str]] = {}
    unequal: dict[tuple[str, ...], list[str]] = {}
    lines: dict[str, list[str]] = {}
    aside: list[str] = []
    for name in sorted({name for _, found in files for name in found if name.endswith(_LOOKED_AT)}):
        groups = _same([(host, f"{found[name].get('size')} bytes, {found[name].get('digest')}" if name in found else "") for host, found in files])
        if not _counts(name, weights):
            aside += [name] if len(groups) > 1 else []
            continue
        if lack := groups.pop("", []):
            absent.setdefault(tuple(lack), []).append(name)
        if len(groups) > 1:
            unequal.setdefault(tuple(alike.odd(groups)), []).append(name)
            lines[name] = [f"{hosts[0]}: {path}/{name}: {value}" for value, hosts in groups.items()]
    if aside:
        yield note(f"files in {path} that no engine needs are not the same on all nodes: {_few(aside)}", [host for host, _ in files], files=aside)
    for hosts, names in absent.items():
        title = f"{gathered.names(hosts)} has the model {path} without {_few(names)}, which other nodes have"
        evidence = [f"{hosts[0]}: {path}/{name}: no such file" for name in names[: gathered.QUOTED]]
        yield stop("model-not-on-node", title, hosts, _copy(hosts, path), evidence=evidence)
    for hosts, names in unequal.items():
        title = f"the model {path} is not the same on {gathered.names(hosts)}{' as on the others' if len(hosts) < len(files) else ''}: {_few(names)}"
        remedy = f"sha256sum {word(path)}/*   # on every node; copy it anew where it differs"
        yield stop("weights-differ", title, hosts, remedy, evidence=[line for name in names for line in lines[name]][: gathered.QUOTED])


def _get(path: str, reason: str) -> str:
    """What makes a model usable where it is not."""
    if reason.endswith(_DENIED):
        return _readable(path)
    if hub.is_name(path):
        return f"hf download {path}   # or export HF_HOME=FOLDER, where it is already; the same on every node"
    return f"ls -lL {word(path)}   # copy it there, or mount the file system that holds it, at the same path"


def _readable(path: str) -> str:
    return f"chmod -R a+rX {word(path)}   # as its owner; the folders above it need a+x, too (namei -l {word(path)})"


def _same(said: Sequence[tuple[str, T]]) -> dict[T, list[str]]:
    """What hosts say -> who says it."""
    groups: dict[T, list[str]] = {}
    for host, value in said:
        groups.setdefault(value, []).append(host)
    return groups


def _copy(hosts: Sequence[str], path: str) -> str:
    return f"on {gathered.names(hosts)}: rsync -a --checksum OTHER_NODE:{word(f'{path}/')} {word(f'{path}/')}   # from a node that has it whole"


def _few(words: Sequence[str], joint: str = ", ") -> str:
    return joint.join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")
