"""Says which names tell that their value is secret: HF_TOKEN, api_key, db-pass, dbPassword."""

from __future__ import annotations

import functools
import re

# A name is looked for from its telling word on: what stands before the word costs nothing and stays.
_KINDS = (
    *("api", "access", "private", "auth", "account", "encryption", "signing", "session", "storage", "client", "wandb", "ssh"),
    *("secret", "master", "deploy", "license", "hmac", "fernet", "service", "subscription", "consumer", "app", "application"),
)
_SURE = (
    *("token", "secret", "password", "passwd", "passphrase", "passcode", "credential", "creds", "cookie"),
    *("rediscli_auth", "dockerconfigjson", "client-key-data"),
    *(f"{kind}{joint}key" for kind in _KINDS for joint in ("", "_", "-", " ")),
)
# Short words must stand for themselves, and their value must look like a secret: PWD=/root and forward_pass: eager do not.
_HOLDERS = "admin|auth|bind|db|email|ftp|http|imap|key|ldap|mail|mongo|mysql|pg|postgres|proxy|rabbitmq|redis|root|smtp|ssh|user"
_BRIEF = {
    "pwd": r"(?<![a-z])pwd|(?<=[a-z])(?-i:Pwd)",
    "pw": r"(?<![a-z\d])pw|(?<=[a-z])(?-i:Pw)",
    "auth": r"(?<=[_-])auth(?!-)|(?<=[\"'])auth(?=\\{0,8}[\"'])|(?<![\w-])auth(?==)",
    "jwt": r"(?<![a-z])jwt",
    "bindpw": r"bindpw",
    "requirepass": r"requirepass",
    "pass": r"(?<=_)pass|(?<=-)pass|(?<=[a-z])(?-i:Pass)|(?<=[\"'])pass(?=\\{0,8}[\"'])|(?<![\w-])pass(?=\s?=)",
    **{f"{holder}_pass": rf"(?<![a-z]){holder}_pass" for holder in _HOLDERS.split("|")},
}
WORDS = (*_SURE, *_BRIEF)

_MORE = "id|key|value|val|data|base|base64|b64|prod|dev|test|raw|plain|text|string|str|bytes|new|old|current|default|main|read|write|admin"
NAME = (
    rf"(?:(?P<sure>{'|'.join(map(re.escape, _SURE))})(?:(?<!token)s)?(?:[_-]?(?:{_MORE}|\d{{1,2}})){{0,2}}(?![a-z\d])"
    rf"|(?P<brief>{'|'.join(_BRIEF.values())})(?:[_-]?\d{{1,2}})?(?![\w-])"
    r"|(?P<longer>(?:token|secret|password|passwd|passphrase|credential)s?(?:[_.-][a-z\d]{1,30}){1,4}(?![\w-])))"  # HF_TOKEN_FOR_CI
)
_TELLS = re.compile(rf"(?i){NAME}\Z")
_SPECIAL = re.compile(
    r"(?i)(?:eos|bos|pad|unk|sep|cls|mask|image|video|audio|stop|start|end|begin|next|first|last|per|prompt|input|output|think|draft)[_-]?\Z"
)
_LONGEST_SPECIAL = 8

# What such a name may hold without being a secret: a truth, a variable, a special token, a file's path, code; a number, unless it is a password.
PLAIN = re.compile(
    r"(?i)none|null|nil|true|false|yes|no|\$\{?\w+\}?|\$\([a-z]+|<[^<>=:\s]{0,80}>?|\[?masked\]?|\*+|0x[\da-f]{1,16}|(?:self|args|config|options|settings|os)\.[a-z_.]+"
    r"|(?:/[\w.@+-]+)+\.(?:json|ya?ml|txt|pem|key|conf|cfg|ini)|[\W_]*"
)
NUMBER = re.compile(r"[\d.,]+[A-Za-z]{0,3}|\[[\d.,\s]*\]")
RANDOM = r"(?-i:(?=[\w+/=~.-]{0,64}\d)(?=[\w+/=~.-]{0,64}[a-z])(?=[\w+/=~.-]{0,64}[A-Z])[\w+/=~.-]{12,4096}|[\da-f]{32,128}(?!\w))"  # looks like one
_IS_RANDOM = re.compile(RANDOM)
_UNWORTHY = re.compile(r"[-/$<\[(].*|[\d.,]{1,4}|.{1,2}|(?i:none|null|true|false)")
_WORDS = re.compile(r"[A-Za-z_.-]+(?:\(.*)?")
_CODE = re.compile(r"[a-z]+(?:[._][a-z]+)+")
_LONGEST_NAME = 200  # characters that are looked at, from its end
_LEAST = 4  # characters of a secret


def special(text: str, at: int) -> bool:
    """Whether the token there is one of a tokenizer: eos_token."""
    return bool(_SPECIAL.search(text[max(0, at - _LONGEST_SPECIAL) : at]))


def is_random(value: str) -> bool:
    """Whether a value looks like a secret, whatever its name is."""
    return bool(_IS_RANDOM.fullmatch(value))


def is_secret(value: str, name: re.Match[str]) -> bool:
    """Whether a value is one, by what its name, a match of NAME, is."""
    if PLAIN.fullmatch(value):
        return False
    if name["longer"]:
        return is_random(value)
    if brief := name["brief"]:
        ordinary = brief in ("auth", "pw", "pass") and (_WORDS.fullmatch(value) or NUMBER.fullmatch(value))  # forward_pass: eager
        return not (ordinary or _UNWORTHY.fullmatch(value))
    made = name["sure"].lower().endswith(("token", "key"))  # by a program, not by somebody who likes words or numbers
    return len(value) >= _LEAST and not (NUMBER.fullmatch(value) and not is_password(name)) and not (made and _CODE.fullmatch(value))


def is_password(name: re.Match[str]) -> bool:
    """Whether people choose what a match of NAME holds: it may be a number, or have spaces."""
    return (name["sure"] or "").lower().startswith("pass")


def tells(name: str, value: str) -> bool:
    """Whether a variable, a field or a key of this name holds a secret, if this is its value."""
    match = _telling(name[-_LONGEST_NAME:])
    return match is not None and is_secret(value, match)


@functools.lru_cache(maxsize=4096)
def _telling(name: str) -> re.Match[str] | None:
    return next((match for match in _TELLS.finditer(name) if not special(name, match.start())), None)


def tells_of_all(name: str) -> bool:
    """Whether all that stands under this key is secret, whatever it is."""
    return tells(name, "Zq7Xw9Lk3Pm5Rt8V")


def option(word: str) -> bool:
    """Whether the words after this one are secret: --api-key."""
    return word.startswith("-") and "=" not in word and tells_of_all(word)
