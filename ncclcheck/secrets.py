"""Mask what must not leave a machine: tokens, keys and passwords, wherever a text carries them."""

from __future__ import annotations

import re
from typing import Any

MASK = "[masked]"
_NAMED = re.compile(
    r"""(?ix) \b
    (?P<name> [\w.-]* (?: token | secret | passw(?:or)?d | (?:api|access|private)[_-]?key ) (?: [_-]?(?:id|key|value) )? )
    (?P<between> ["']? \s* [=:] \s* ["']? )
    (?P<value> [^\s"',;&}]{4,} )"""
)
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\bAKIA[A-Z0-9]{12,}|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+|\bnvapi-[\w-]{16,}"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{12,}")
_URL = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s/:@]+:)[^\s/@]+(?=@)")


def mask(text: str) -> str:
    """The text with every secret that can be recognised replaced by `[masked]`."""
    text = _BEARER.sub(lambda match: f"{match[1]} {MASK}", text)
    text = _URL.sub(lambda match: f"{match['head']}{MASK}", text)
    text = _SHAPES.sub(MASK, text)
    return _NAMED.sub(lambda match: f"{match['name']}{match['between']}{MASK}", text)


def mask_all(value: Any) -> Any:
    """The same for every text inside lists and mappings; the text under a key that names a secret is masked whole."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: MASK if isinstance(item, str) and _NAMED.match(f"{key}=masked") else mask_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_all(item) for item in value]
    return value
