"""Finds the value of a name that tells of a secret, in every way in which a text gives a value to a name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.secret_names import NAME, RANDOM, is_password, is_random, is_secret, special, tells_of_all

Span = tuple[int, int]

# What stands around a name, its sign and its value: quotes (also escaped, or as addresses and pages write them), colours.
_ANSI = r"(?:\x1b|\\{1,8}(?:x1b|u001b|033|e))\[[\d;]{0,16}[mK]"
_QUOTE = r"""(?:\\{0,8}["'`]|&(?:quot|apos|\#3[49]|\#x2[27]);|%2[27]|\\{1,8}u002[27])"""
_AROUND = rf"(?:{_ANSI}|{_QUOTE}|[ \t]|\\{{1,8}}t|[)\]](?=\s*=)){{0,64}}+"
_SIGN = r"(?:=>|->|[:?+]=|<-|=|:{1,2}(?!//)|%3[ad]|\\{1,8}u003[ad]|&\#61;)"
_TYPED = r"[ \t]*:[ \t]*(?:str|bytes|SecretStr|Optional\[\w{1,20}\]|str \| None)[ \t]*="
_FIELD = rf"{_QUOTE}?(?:[,\s]|\\{{1,8}}[nrt]){{1,64}}+(?:- )?{_QUOTE}?value{_QUOTE}?[ \t]*[:=]"  # name: HF_TOKEN, value: ...
_PAIR = rf"(?P<pair>{_QUOTE},[ \t]*(?=b?{_QUOTE}))"  # ('HF_TOKEN', '...')
_TAG = r">(?=[^<>\s]{4,4096}</)"
_BELOW = rf"(?:{_AROUND}(?P<block>[|>][+-]?)?[ \t]*\\?\r?(?P<below>\n))?"
_NAMED = re.compile(rf"(?i){NAME}")
_ASSIGNED = re.compile(rf"(?i){NAME}(?:{_TYPED}|{_FIELD}|{_AROUND}{_SIGN}|{_TAG}|{_PAIR}){_BELOW}")

# Words of a command line, one after the other.
_BEFORE = 64  # characters before a name in which its option begins
_DASHED = re.compile(r"(?<![\w-])--?[\w.-]*\Z|\b(?:setenv|ENV|config(?:ure)? set|git config(?: --\w+)*)[ \t]+[\w./:-]*\Z")
_NEXT = re.compile(rf"(?i){_QUOTE}?(?:{_ANSI}|[ \t,\x00]|\\{{1,8}}(?:0|x00|u0000|n)|(?P<below>\r?\n)[ \t]*(?:- )?){{1,64}}+(?!{_QUOTE}?-)")
_WORD = re.compile(r"[^\x00\n]{1,4096}(?=\x00)")  # as the kernel tells them
_MOST_WORDS = 16  # after one option

# A name and a value side by side.
_PLACE = r"[\w-]*\.|(?=[\w+=-]*/)[\w/+=]*?[_-]"  # a version, a host, a model or a file rather
_SAID = re.compile(rf"(?i){NAME}(?:{_ANSI}|[ \t\"'`(\[|]|\b(?:is|was|to|value|set)\b){{1,16}}+(?P<value>(?!{_PLACE}){RANDOM})")
_ALONE = re.compile(r"(?i)pass(?:word|phrase)[ \t]+(?P<value>\S{4,256})[ \t]*\r?$", re.M)  # a line of .netrc

# A value: all that stands between its quotes, all that stands in brackets, or as far as nothing ends it.
_OPENS = rf"(?:{_ANSI}|[ \t])*+(?:[bruf]{{1,2}}(?={_QUOTE})|(?:&|!{{1,2}})\w{{1,40}}[ \t]+)?"
_QUOTED = re.compile(rf"(?i){_OPENS}(?P<quote>'''|\"\"\"|{_QUOTE})(?P<value>(?:(?!(?<!\\)(?P=quote))[^\n]){{0,4096}})")
_LOOKS = re.compile(rf"(?i){_OPENS}(?:{_QUOTE})?(?P<value>{RANDOM})")
_HOLDS = re.compile(rf"(?i){_OPENS}(?:[a-z_][\w.]{{0,60}}(?=[(\[](?:b?{_QUOTE}|\)))|(?=[\[{{(](?!masked\])))")
_BARE = re.compile(
    rf"(?i){_OPENS}(?:(?:basic|bearer|digest|token) +)?"
    r"""(?P<value>(?:[^\s"'`,;&\\})\]<\x1b\x00]|<(?!/)|&(?=[^\s"'&])(?![\w.-]{1,40}[=;])|[,;](?=[^\s"'\[{(,;&])(?![\w.-]{1,40}[=:])"""
    r"""|[)}\]](?=[\w@#%^*!$])|\\(?![nrtux"'\\])|["'`](?=\w)){1,4096})"""
)
_REST = re.compile(r"""[^\n\r=:{}"']{1,128}$""", re.M)
_LEAF = re.compile(
    rf"(?i)(?:(?P<open>[\[{{(])|(?P<close>[\]}})])|(?P<line>\n)|b?(?P<quote>{_QUOTE})(?P<quoted>(?:(?!(?<!\\)(?P=quote))[^\n]){{0,4096}})(?P=quote)"
    r"""|(?P<bare>[^\s"'`,\[\]{}()\\=:]{1,4096})|\\.|[^\n])(?P<key>[ \t]*(?:[:=]|->))?"""
)
_CODE = re.compile(r"[A-Za-z_.]+")
_GOES_ON = re.compile(r"[\[{(,:][ \t\r]*\Z")
_CLOSES = re.compile(r"[ \t]*[\]})\"']")
_LARGEST = 1 << 16  # characters in brackets

# Values in the lines below their name.
_SINGLE = re.compile(rf"[ \t]*(?:- )?(?:{_QUOTE}[^\n]{{1,4096}}{_QUOTE}|[^\s:=]\S{{0,4096}}(?<!:)),?(?:{_ANSI})?[ \t]*\r?$", re.M)
_ENTRY = re.compile(rf"""(?P<indent>[ \t]*)(?:- )?(?:["']?[\w. -]{{1,64}}["']?:[ \t]+)?(?:{_QUOTE})?(?P<value>[^\n"',\r]{{1,4096}})""")
_MOST_LINES = 64


def find(text: str, at: int) -> list[Span]:
    """Where the value stands of the name whose telling word begins there. Up to the end of the last, nothing more is to be found."""
    if not (named := _NAMED.match(text, at)) or special(text, at):
        return []  # most are words of a sentence: 3 tokens/s
    if match := _ASSIGNED.match(text, at):
        return [*_below(text, match)] if match["below"] else _value(text, match.end(), match)
    if _DASHED.search(text[max(0, at - _BEFORE) : at]):
        return [*_arguments(text, named)]
    if match := _SAID.match(text, at):
        return [match.span("value")]
    if (match := _ALONE.match(text, at)) and not text[text.rfind("\n", max(0, at - _BEFORE), at) + 1 : at].strip():
        return [match.span("value")]
    return []


def _value(text: str, at: int, name: re.Match[str]) -> list[Span]:
    """The value that begins there."""
    if name["longer"]:
        return [found.span("value")] if (found := _LOOKS.match(text, at)) else []
    if found := _QUOTED.match(text, at):
        return [found.span("value")] if is_secret(found["value"], name) else []
    if (found := _HOLDS.match(text, at)) and name["sure"]:
        return [*_leaves(text, found.end(), name)]
    if not (found := _BARE.match(text, at)) or not is_secret(found["value"], name):
        return []
    start, end = found.span("value")
    line = text[text.rfind("\n", max(0, name.start() - _BEFORE), name.start()) + 1 : name.start()]
    if is_password(name) and re.fullmatch(r"[ \t]*[\w.-]*", line) and (rest := _REST.match(text, end)):  # words that stand alone in a line
        end = rest.end()
    return [(start, end)]


def _leaves(text: str, at: int, name: re.Match[str]) -> Iterator[Span]:
    """All values inside the brackets that open there; where they are not closed, those in this line. An empty one says how far that is."""
    depth, end = 0, at
    for leaf in _LEAF.finditer(text, at, at + _LARGEST):
        end = leaf.end()
        if leaf["open"]:
            depth += 1
        elif leaf["close"]:
            depth -= 1
            if depth <= 0:
                break
        elif leaf["line"]:
            if not _GOES_ON.search(text[max(at, leaf.start() - _BEFORE) : leaf.start()]) and not _CLOSES.match(text, leaf.end("line")):
                break
        elif not leaf["key"] and (value := leaf["quoted"] or leaf["bare"]):
            code = _CODE.fullmatch(value) and tells_of_all(value)  # os.environ["HF_TOKEN"]
            if not code and is_secret(value, name) and not (leaf["bare"] and _CODE.fullmatch(value) and not is_password(name)):
                yield leaf.span("quoted" if leaf["quoted"] else "bare")
    yield end, end


def _arguments(text: str, name: re.Match[str]) -> Iterator[Span]:
    """What follows an option: its value, and further ones that look like secrets."""
    at = name.end()
    for number in range(_MOST_WORDS):
        after = _NEXT.match(text, at)
        if not after or (after["below"] and not _SINGLE.match(text, after.end())):
            return
        word = _WORD.match(text, after.end()) if text[after.end() - 1] == "\0" else None
        found = [word.span()] if word and is_secret(word[0], name) else _value(text, after.end(), name)
        if not found or (number and not is_random(text[slice(*found[0])])) or _names_one(text[slice(*found[0])]):
            return
        yield from found
        at = found[-1][1]


def _names_one(value: str) -> bool:
    """Whether it is the name of a secret: --api-key API_KEY, in the text of --help."""
    return bool(_CODE.fullmatch(value)) and value.isupper() and tells_of_all(value)


def _below(text: str, name: re.Match[str]) -> Iterator[Span]:
    """The value that the next line is, or those in all further lines that are indented more; each behind what a log puts before a line."""
    before = text[text.rfind("\n", max(0, name.start() - 4096), name.start()) + 1 : name.start()].rstrip("\"'\\")
    before = before[: len(before) - len(re.split(r"[^\w.-]", before[-_BEFORE:])[-1])].rstrip("\"'\\")
    prefix = before.rstrip(" \t")
    start = name.end()
    for number in range(_MOST_LINES):
        end = text.find("\n", start) % (len(text) + 1)
        structured = _alike(prefix, text[start : start + len(prefix)])
        begin = start + len(prefix) * structured
        if not (entry := _ENTRY.match(text, begin, end)):
            return
        deeper = structured and len(entry["indent"]) > len(before) - len(prefix)
        if number == 0 and name["sure"] and text[entry.end("indent") : entry.end("indent") + 1] in ("{", "[", "("):
            yield from _leaves(text, entry.end("indent"), name)
            return
        if not deeper and (number or not _SINGLE.match(text, begin)):
            return
        if is_secret(entry["value"].strip(), name) and not entry["value"].rstrip().endswith(":"):
            yield entry.span("value")
        if not deeper:
            return
        start = end + 1


def _alike(one: str, other: str) -> bool:
    """Whether two beginnings of lines differ in digits only: in the time, or the number of a process."""
    return len(one) == len(other) and all(a == b or (a.isdigit() and b.isdigit()) for a, b in zip(one, other, strict=True))
