"""Mask what must not leave a machine: tokens, keys and passwords, wherever a text carries them.

A secret is found by its name, by its shape, by where it stands; and by its value, where this process knows it: from its own environment and
arguments, and from those of the jobs that it looks at (`learn`). Masking keeps every line where it is.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from ahocorasick_rs import AhoCorasick

from ncclcheck import private_keys, secret_names, secret_values
from ncclcheck.secret_shapes import PLACES, SHAPE, SHAPES

MASK = "[masked]"
Span = tuple[int, int]
T = TypeVar("T")

_A_NAME, _A_SHAPE, _KNOWN = "a name", "a shape", "a known value"
_LEAST = 8  # characters of a value that is masked wherever it stands
_HEAD = 4096  # bytes of a file that say whether it is a text
_ODD = bytes({*range(1, 32)} - set(b"\t\n\r\x1b"))
_MOST = 10_000  # values that are remembered
_ORDINARY = re.compile(r"[A-Z]?[a-z]*(?:[-_./: ][A-Z]?[a-z]*)*|[A-Z]+(?:[-_ ][A-Z]+)*|[\d.,:]{1,19}")  # words, numbers
_PATH = re.compile(r"(?:~|\.{1,2})?(?:/[\w.@+%:-]{1,64})+/?")
_MIXED = re.compile(r"(?=[^/]*\d)(?=[^/]*[a-z])(?=[^/]*[A-Z])[^/.]{12,}")  # in a path, no name of a file

_known: set[str] = set()


def mask(text: str) -> str:
    """The text with every secret that can be recognised replaced by `[masked]`."""
    _own()
    return _replaced(text, _spans(text))


def mask_all(value: Any) -> Any:
    """The same for every text inside lists and mappings; what stands under a key that names a secret is masked whole."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        named = value.get("name")
        tells = isinstance(named, str) and isinstance(given := value.get("value"), str) and secret_names.tells(named, given)
        return {_key(key): MASK if tells and key == "value" else _under(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [item if isinstance(item, int | float) else mask_all(item) for item in _without_arguments(value)]
    return value


def mask_as(value: T, kind: Any) -> T:
    """The same for what msgspec can write: facts, a report. `kind` is its type."""
    masked: T = msgspec.convert(mask_all(msgspec.to_builtins(value)), kind)
    return masked


def mask_bytes(data: bytes) -> bytes:
    """A file's content with every secret covered by as many asterisks, each other byte in its place; in a binary dump, values that are known."""
    _own()
    text = data.decode("latin-1")  # a character for each byte
    found = _known_spans(text) if _is_binary(data[:_HEAD]) else _spans(text)
    return _replaced(text, found, "*").encode("latin-1")


def learn(environ: Mapping[str, str], words: Sequence[str] = ()) -> None:
    """Remember the secrets of an environment and of a command line: from now on, they are masked wherever they stand."""
    values: set[str] = set()
    for name, value in environ.items():
        values |= {value} if secret_names.tells(name, value) else _secrets(f"{name}={value}")
    hidden = _without_arguments(words)
    values |= {word for word, left in zip(words, hidden, strict=True) if left != word}
    for word in hidden:
        values |= _secrets(word)
    _remember(values)


def _remember(values: Iterable[str]) -> None:
    for value in values:
        pieces = [piece for piece in re.split(r"[\s;,&=:\"'{}]+", value) if secret_names.is_random(piece)]  # sid=...; user:...
        for part in {value.strip(), *re.split(r"\s*(?:\n|\\n)\s*", value), *pieces}:  # a key has lines
            if len(part) >= _LEAST and not _is_ordinary(part) and len(_known) < _MOST:
                _known.add(part)


def _is_ordinary(value: str) -> bool:
    """Whether a value may well stand in a text without being the secret."""
    path = _PATH.fullmatch(value) and not _MIXED.search(value)
    return bool(path or _ORDINARY.fullmatch(value) or secret_names.PLAIN.fullmatch(value) or value.startswith("-----"))


@functools.cache
def _own() -> None:
    """What this process itself was given."""
    learn(os.environ, sys.argv)


def _forms(value: str) -> Iterator[str]:
    """A value as it may be written: as it is, in JSON, in an address, and in base64, also with something before it."""
    yield from (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe="", errors="surrogateescape"))
    data = value.encode("utf-8", "surrogateescape")
    yield data.decode("latin-1")  # in a file that is read byte by byte
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + data).decode()
        yield whole[(0, 2, 3)[before] : (len(data) + before) * 8 // 6]


@functools.lru_cache(maxsize=2)
def _finder(known: int) -> tuple[AhoCorasick, tuple[set[str], ...]]:
    """What finds the places worth a look, and of what kind each of its words is: a name, a shape, a known value, the hint of a place."""
    kinds: dict[str, set[str]] = {}
    for words, kind in ((secret_names.WORDS, _A_NAME), (SHAPES, _A_SHAPE), ((form for value in _known for form in _forms(value)), _KNOWN)):
        for word in words:
            kinds.setdefault(_lowered(word), set()).add(kind)
    for hint in PLACES:
        kinds.setdefault(hint, set()).add(hint)
    return AhoCorasick(list(kinds)), tuple(kinds.values())


@functools.cache
def _place(hint: str) -> re.Pattern[str]:
    return re.compile(PLACES[hint])


def _lowered(text: str) -> str:
    """In small letters, each character in its place."""
    if not text.isascii():  # what is no text, as in names of files, and the only letter that becomes two
        text = text.encode("utf-8", "replace").decode().replace("İ", "i")
    return text.lower()


def _spans(text: str) -> list[Span]:
    """Where the secrets stand."""
    finder, kinds = _finder(len(_known))
    found = [*private_keys.spans(text)]
    done = 0  # a value that was found by its name is not looked at again
    line, stop = 0, -1  # the line that is being looked at
    looked: set[str] = set()  # hints of places that have been looked for in it
    for word, start, end in finder.find_matches_as_indexes(_lowered(text), overlapping=True):
        if start > stop:
            line, stop, looked = text.rfind("\n", 0, start) + 1, text.find("\n", start) % (len(text) + 1), set()  # -1: the end of the text
        for kind in kinds[word]:
            if kind == _A_NAME:
                if start >= done:
                    values = secret_values.find(text, start)
                    found += values
                    done = max([done, *(last for _, last in values)])
            elif kind == _A_SHAPE:
                if match := SHAPE.match(text, start):
                    found.append(match.span())
            elif kind == _KNOWN:
                found.append((start, end))
            elif kind not in looked:
                looked.add(kind)
                found += [(match.end("head"), match.end()) for match in _place(kind).finditer(text, line, stop)]
    return found


def _is_binary(head: bytes) -> bool:
    """Whether these bytes are no text; a log may well have some zeros: command lines, or what a full disk left out."""
    odd = len(head) - len(head.translate(None, _ODD))
    return head.startswith(b"\x80") or odd > len(head) // 50 or head.count(0) > len(head) // 4


def _known_spans(text: str) -> list[Span]:
    finder, kinds = _finder(len(_known))
    return [(start, end) for word, start, end in finder.find_matches_as_indexes(_lowered(text), overlapping=True) if _KNOWN in kinds[word]]


def _secrets(text: str) -> set[str]:
    return {text[start:end] for start, end in _spans(text)}


def _replaced(text: str, spans: Sequence[Span], cover: str = "") -> str:
    """The text with these places masked, by `cover` for each character if given; their line ends stay."""
    places: list[Span] = []
    for start, end in sorted(spans):
        if places and start < places[-1][1]:
            places[-1] = places[-1][0], max(end, places[-1][1])
        elif start < end:
            places.append((start, end))
    parts: list[str] = []
    done = 0
    for start, end in places:
        secret = text[start:end]
        parts += text[done:start], re.sub(r"[^\n]", cover, secret) if cover else "\n".join(MASK if line else "" for line in secret.split("\n"))
        done = end
    return "".join([*parts, text[done:]]) if parts else text


def _without_arguments(words: Sequence[Any]) -> list[Any]:
    """The same list, without the values of options and variables that name a secret: --api-key VALUE, or a pair of a name and its value."""
    if len(words) == 2 and isinstance(words[0], str) and isinstance(words[1], str) and secret_names.tells(words[0], words[1]):
        return [words[0], MASK]
    kept: list[Any] = []
    secret = 0  # words since an option whose values are secret
    for word in words:
        if not isinstance(word, str):
            kept.append(word)
            continue
        hides = bool(secret) and not word.startswith("-") and (secret == 1 or secret_names.is_random(word)) and secret_names.tells("token", word)
        kept.append(MASK if hides else word)
        secret = secret + 1 if hides else int(secret_names.option(word))
    return kept


@functools.lru_cache(maxsize=4096)
def _key(key: Any) -> Any:
    return mask(key) if isinstance(key, str) else key


def _under(key: str, item: Any) -> Any:
    """What stands under a key."""
    if isinstance(item, str):
        return MASK if secret_names.tells(key, item) else mask(item)
    return _leaves(item) if isinstance(item, dict | list | tuple) and secret_names.tells_of_all(key) else mask_all(item)


def _leaves(value: Any) -> Any:
    """The same structure without any value that may be a secret."""
    if isinstance(value, dict):
        return {key: _leaves(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_leaves(item) for item in value]
    return MASK if isinstance(value, str) and secret_names.tells("password", value) else value
