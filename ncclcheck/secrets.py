"""Mask what must not leave a machine: tokens, keys and passwords, wherever a text carries them."""

from __future__ import annotations

import functools
import itertools
import re
from bisect import bisect_right
from collections.abc import Set
from typing import Any

from ahocorasick_rs import AhoCorasick

MASK = "[masked]"

# Names that say it: FOO_TOKEN=..., "password": "...", api_key: ['...'], --api-key ... A name is looked for from its telling
# word on: what stands before the word costs nothing and stays.
_KEYS = ("api", "access", "private", "auth", "account", "encryption", "signing", "session", "storage", "client", "wandb", "ssh")
_NAMES = (
    *("token", "secret", "password", "passwd", "passphrase", "credential", "mysql_pwd", "rediscli_auth", "dockerconfigjson", "client-key-data"),
    *(f"{kind}{joint}key" for kind in _KEYS for joint in ("", "_", "-")),
)
_NAME = rf"(?:{'|'.join(map(re.escape, _NAMES))})(?:(?<!token)s)?(?:[_-]?(?:id|key|value|data|base|prod|dev|test|\d{{1,2}}))?"
_VALUE = r"""(?:\[[^\]\n]{4,4096}\]|(?<=")[^"\n]{4,4096}(?=")|(?<=')[^'\n]{4,4096}(?=')|[^\s"',;&\\})\]]{4,4096})"""
_NAMED = re.compile(rf"""(?i)(?P<head>{_NAME}[\\"']*\s?[=:]\s*[\\"'({{]*)(?P<value>{_VALUE})""")
_FLAG = re.compile(rf"""(?i)(?P<head>(?<![\w-])--?[\w-]*?{_NAME}["']*(?:,[ \t]*|[ \t]+)["']?)(?P<value>(?!-){_VALUE})""")
_ASSIGNS = re.compile(rf"""(?i){_NAME}[\\"']*\s?(?P<sign>[=:,\s])""")
_DASHED = re.compile(r"(?<![\w-])--?[\w-]*\Z")
# What such a name may hold without being a secret: a number, a truth, a variable, a command's output, a special token, a file's path.
_PLAIN = re.compile(
    r"(?i)[\d.,]+[a-z]{0,3}|none|null|true|false|\$\{?\w+\}?|\$\([a-z]+|<[^>]*>?|\[masked\]?|\[[\d.,\s]*\]|\*+|(?:/[\w.@+-]+)+\.(?:json|ya?ml|txt|pem|key|conf|cfg|ini)"
)
_SPECIAL = re.compile(
    r"(?i)(?:eos|bos|pad|unk|sep|cls|mask|image|video|audio|stop|start|end|begin|next|first|last|per|prompt|input|output|think|draft)[_-]?$"
)

# Values that show what they are, whatever their name: how they begin, and what follows.
_SHAPES = {
    **dict.fromkeys(("hf_", "api_org_", "gsk_", "xai-", "r8_"), r"[A-Za-z0-9]{20,}"),  # Hugging Face, Groq, xAI, Replicate
    **dict.fromkeys(
        ("sk-", "nvapi-", "pypi-", "dckr_pat_", "GOCSPX-", "ya29.", "hvs.", "hvb.", "hvr."), r"[\w-]{16,}"
    ),  # OpenAI, Anthropic, NGC, ...
    **dict.fromkeys(("sk_live_", "sk_test_", "rk_live_", "rk_test_", "dop_v1_", "wandb_v1_"), r"\w{16,}"),
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "npm_"), r"\w{16,}"),  # GitHub, npm
    **dict.fromkeys(
        ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glsoat-", "glagent-", "gloas-", "ATATT"), r"[\w.=-]{16,}"
    ),  # GitLab, Atlassian
    **dict.fromkeys(("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"), r"[\w-]{10,}"),  # Slack
    **dict.fromkeys(("AKIA", "ASIA", "AROA", "AIDA", "AGPA", "ANPA"), r"[A-Z0-9]{12,}"),  # AWS
    "AIza": r"[\w-]{30,}",  # Google
    "dapi": r"[0-9a-f]{32}",  # Databricks
    "ncct_": r"[0-9a-f]{32}",  # ours (see run_token)
    "SG.": r"[\w-]{16,}\.[\w-]{16,}",  # SendGrid
    "eyJ": r"(?:[\w-]{8,}\.[\w-]{8,}[\w.-]*|[\w+/-]{40,}=*)",  # a JSON web token; bare base64 of JSON, as Neptune's
}
_SHAPE = re.compile(rf"\b(?:{'|'.join(re.escape(start) + rest for start, rest in _SHAPES.items())})")

# What a short name such as DB_PASS may be followed by, and what stands after it where that is no secret.
_IS = r"""[\\"']*\s?[=:]\s*[\\"']*"""
_WORTH = r"""(?![-/$<\[]|[\d.,]{1,4}(?![^\s"',;])|(?i:none|null|true|false)\b)[^\s"'\\]{3,512}"""
_HOLDERS = "admin|auth|bind|db|email|ftp|http|imap|key|ldap|mail|mongo|mysql|pg|postgres|proxy|rabbitmq|redis|root|smtp|ssh|user"

# Values in a known place: a word that every match contains, in lower case, and the place (`head`) with its value.
_PLACES = {
    "authorization": r"""(?i)(?P<head>\bauthorization[\\"']*\s*[:=]\s*[\\"']*(?:(?:bearer|basic|token|digest|aws4-\S+)\s+)?)[^"'\\\n]{4,}""",
    "cookie": r"""(?i)(?P<head>\b(?:set-)?cookie[\\"']*:\s*[\\"']*)[^"'\\\n]{8,}""",
    "bearer": r"(?P<head>\b(?i:bearer)\s+)(?=[A-Za-z0-9+/._~-]*[\d=])[A-Za-z0-9+/=._~-]{12,}",
    "basic": r"(?P<head>\b(?i:basic)\s+)(?=[A-Za-z0-9+/]*[\d=])[A-Za-z0-9+/=]{12,}",
    "sig": r"(?i)(?P<head>(?:[?&]|&amp;|\\u0026)(?:sig|(?:x-(?:amz|goog)-)?signature)=)[\w%+/=.~-]{8,}",  # Azure, AWS, Google: signed addresses
    "credential": r"(?i)(?P<head>(?:[?&]|&amp;|\\u0026)x-(?:amz|goog)-credential=)[\w%+/=.@~-]{8,}",
    "security-token": r"(?i)(?P<head>(?:[?&]|&amp;|\\u0026)x-(?:amz|goog)-security-token=)[\w%+/=.~-]{8,}",
    "accesskeyid=": r"(?i)(?P<head>accesskeyid=)[\w%]{8,}",
    "key=": r"(?i)(?P<head>[?&]key=)[\w-]{20,}",
    "://": r"""(?P<head>://[^\s/:@"']{0,256}:)[^\s/"']{1,512}(?=@)""",  # a password may hold an @: the last one ends it
    "@": r"(?P<head>://)(?=[A-Za-z_-]*\d)[\w-]{20,512}(?=@)",
    "login": r"(?P<head>\blogin\s+\S+\s+password\s+)\S+",  # .netrc
    "login ": r"(?P<head>\b(?:docker|podman|nerdctl|skopeo|buildah|oc|az)\s+login\b[^\n|;]{0,256}?\s-p[\s=]+)\S+",
    "wandb": r"(?P<head>\bwandb\s+login\s+(?:--\S+\s+){0,4})[0-9a-f]{32,64}\b",
    "_pass": rf"(?P<head>(?:_PASS|(?i:(?:{_HOLDERS})_pass)){_IS}){_WORTH}",
    "_pwd": rf"(?P<head>(?:_PWD|(?i:(?:{_HOLDERS})_pwd)){_IS}){_WORTH}",
    "_jwt": rf"(?i)(?P<head>_jwt{_IS}){_WORTH}",
    "bindpw": rf"(?i)(?P<head>bindpw(?:{_IS}|\s+)){_WORTH}",
    "requirepass": rf"""(?i)(?P<head>\brequirepass["']*[=:,\s]\s*["']?){_WORTH}""",
    "-pass": rf"""(?i)(?P<head>(?<![\w-])--?(?:[\w-]{{0,64}}-)?pass["']*(?:=|,?\s+)["']?){_WORTH}""",
    "-pwd": rf"""(?i)(?P<head>(?<![\w-])--?(?:[\w-]{{0,64}}-)?pwd["']*(?:=|,?\s+)["']?){_WORTH}""",
    "sshpass": r"""(?P<head>\bsshpass\s+-p\s*["']?)[^\s"']+""",
    "mysql": r"""(?P<head>\bmysql(?:dump|admin)?\s(?:[^\n|;]{0,256}?\s)?-p\s*["']?)(?!-)[^\s"']+""",
    "curl": r"""(?P<head>\bcurl\s(?:[^\n|;]{0,256}?\s)?(?:-[uU]|--(?:proxy-)?user)[\s=]*["']?[^\s:"']{1,128}:)[^\s"']{1,512}""",
    'auth"': r"""(?P<head>"auth\\?"\s*:\s*\\?")[A-Za-z0-9+/=]{8,}""",  # ~/.docker/config.json
    "hooks.slack.com": r"(?P<head>hooks\.slack\.com/services/)[\w/]{16,}",
    "bot": r"(?P<head>\bbot)\d{8,10}:[\w-]{30,}",  # Telegram
}

_A_NAME, _A_SHAPE = "a name", "a shape"
_ALL = frozenset({_A_NAME, _A_SHAPE, *_PLACES})

_GAP = r"(?:\s|\\[nr])*+"
_KEY = re.compile(
    rf"(?P<head>-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)(?:{_GAP}(?:Proc-Type|DEK-Info|Version|Comment): [^\n\\]*)*+"
    rf"(?:{_GAP}[A-Za-z0-9+/=]{{16,}}+)*+(?:{_GAP}[A-Za-z0-9+/=]{{1,15}}+(?={_GAP}-----END))?+"
)
_KEY_END = re.compile(r"^-----END [A-Z0-9 ]*PRIVATE KEY", re.M)
_KEY_LINE = re.compile(r"[A-Za-z0-9+/=]+\r?\n")


def mask(text: str) -> str:
    """The text with every secret that can be recognised replaced by `[masked]`; only a private key's lines become fewer."""
    if "PRIVATE KEY" in text:
        text = _without_tails(_KEY.sub(_keep_head, text))
    finder, kinds = _finder()
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters change their length: then places are not the same in both
        return "\n".join(_line(line, _ALL) for line in text.split("\n"))
    lines = text.split("\n")
    starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    suspects: dict[int, set[str]] = {}  # line -> what may be in it
    for hint, start, _ in finder.find_matches_as_indexes(lowered, overlapping=True):
        if kinds[hint] != {_A_NAME} or _tells(text, start):
            suspects.setdefault(bisect_right(starts, start) - 1, set()).update(kinds[hint])
    for number, found in suspects.items():
        lines[number] = _line(lines[number], found)
    return "\n".join(lines)


def mask_all(value: Any) -> Any:
    """The same for every text inside lists and mappings; the text under a key that names a secret is masked whole."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: _under(str(key), item) if isinstance(item, str) else mask_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_all(item) for item in value]
    return value


@functools.cache
def _finder() -> tuple[AhoCorasick, tuple[set[str], ...]]:
    """What finds the lines worth a look, and of what kind each of its words is: a name, a shape, the hint of a place."""
    kinds: dict[str, set[str]] = {}
    for words, kind in ((_NAMES, _A_NAME), (_SHAPES, _A_SHAPE)):
        for word in words:
            kinds.setdefault(word.lower(), set()).add(kind)
    for hint in _PLACES:
        kinds.setdefault(hint, set()).add(hint)
    return AhoCorasick(list(kinds)), tuple(kinds.values())


@functools.cache
def _place(hint: str) -> re.Pattern[str]:
    return re.compile(_PLACES[hint])


def _tells(text: str, start: int) -> bool:
    """Whether the name there is one of a value (`token=`, `--token `) and not a word of a sentence: most are, in an engine's log."""
    match = _ASSIGNS.match(text, start)
    return match is not None and (match["sign"] in ("=", ":") or bool(_DASHED.search(text[max(0, start - 64) : start])))


def _line(text: str, kinds: Set[str]) -> str:
    for hint in _PLACES:
        if hint in kinds:
            text = _place(hint).sub(_keep_head, text)
    if _A_SHAPE in kinds:
        text = _SHAPE.sub(MASK, text)
    return _FLAG.sub(_named, _NAMED.sub(_named, text)) if _A_NAME in kinds else text


def _keep_head(match: re.Match[str]) -> str:
    return match["head"] + MASK


def _named(match: re.Match[str]) -> str:
    special = _SPECIAL.search(match.string[max(0, match.start() - 12) : match.start()])
    return match[0] if special or _PLAIN.fullmatch(match["value"]) else match["head"] + MASK


def _under(key: str, value: str) -> str:
    """The text under a key."""
    named = mask(f"{key}=masked_value") == f"{key}={MASK}"
    return MASK if named and value and not _PLAIN.fullmatch(value) else mask(value)


def _without_tails(text: str) -> str:
    """Without the lines of a private key whose beginning was cut off, as in the last megabytes of a log."""
    parts: list[str] = []
    done = 0
    for end in _KEY_END.finditer(text):
        start = end.start()
        while start > done and _KEY_LINE.fullmatch(text, before := text.rfind("\n", 0, start - 1) + 1, start):
            start = before
        if start < end.start():
            parts += text[done:start], MASK, "\n"
            done = end.start()
    return "".join(parts) + text[done:]
