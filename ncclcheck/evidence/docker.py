"""Reads what a process may use: docker inspect and docker run, df, ulimit and /proc/PID/limits.

shm (size, used, available in bytes) of /dev/shm; container (ipc, network, memory, ulimits, gpus, ... as given); limit (name:
memlock, nofile or nproc; soft, hard in bytes or pieces, or "unlimited"); filesystem (mount, size, available, percent) where
one is at least 90 % full.

Reads
    log a.txt:             "ShmSize": 67108864,
    log a.txt:             "IpcMode": "private",
    log a.txt:             "NetworkMode": "bridge",
    log a.txt:             "Memory": 34359738368,
    log a.txt:             "Ulimits": [
    log a.txt:                 "Name": "memlock",
    log a.txt:                 "Hard": 65536,
    log a.txt:                 "Soft": 65536
    log a.txt:             ],
    => shm size=67108864
    => container ipc=private
    => container network=bridge
    => container memory=34359738368
    => limit name=memlock soft=65536 hard=65536

Reads
    log a.txt: docker run --gpus all --ipc=host --network host \\
    log a.txt:   --ulimit memlock=-1 --shm-size 16g vllm/vllm-openai
    log b.txt: podman run --rm image
    log c.txt:     shm_size: '8gb'
    => container program=docker ipc=host network=host shm_size=17179869184 ulimit=['memlock=-1']
    => container program=podman
    => shm size=8589934592

Reads
    log a.txt: Filesystem      Size  Used Avail Use% Mounted on
    log a.txt: shm              64M   60M  4.0M  94% /dev/shm
    log a.txt: /dev/sda1       100G  100G     0 100% /scratch
    => shm size=67108864 available=4194304
    => filesystem mount=/scratch percent=100

Reads
    log a.txt: max locked memory           (kbytes, -l) 8192
    log a.txt: open files                          (-n) 1024
    log b.txt: Max locked memory         65536                unlimited            bytes
    log b.txt: Max open files            1024                 524288               files
    log c.txt: $ ulimit -l
    log c.txt: 64
    log d.txt: ulimit -n: 256
    => limit name=memlock soft=8388608
    => limit name=nofile soft=1024
    => limit name=memlock soft=65536 hard=unlimited
    => limit name=nofile soft=1024 hard=524288
    => limit name=memlock soft=65536
    => limit name=nofile soft=256
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact
from ncclcheck.units import parse_bytes

_FULL = 90  # percent of a file system
_RUN = r"\b(?P<program>docker|podman|nerdctl|nvidia-docker) run\b"
_OPTIONS = {
    "ipc": "ipc",
    "network": "network",
    "net": "network",
    "gpus": "gpus",
    "shm-size": "shm_size",
    "memory": "memory",
    "m": "memory",
    "pid": "pid",
}
_OPTION = re.compile(r"(?:^|\s)--?(?P<name>[a-z][a-z-]*)(?:[= ](?P<value>[^\s\\-]\S*))?")
_DF = r"^Filesystem\s+.*Mounted on"
_ROW = re.compile(
    r"^(?P<source>\S+)\s+(?:[a-z]\w*\s+)?(?P<size>[\d.]+[KMGTP]?)i?\s+(?P<used>[\d.]+[KMGTP]?)i?\s+(?P<available>[\d.]+[KMGTP]?)i?\s+(?P<percent>\d+)%\s+(?P<mount>/\S*)"
)
_LIMITS = {
    "max locked memory": "memlock",
    "open files": "nofile",
    "max open files": "nofile",
    "max processes": "nproc",
    "max user processes": "nproc",
    "-l": "memlock",
    "-n": "nofile",
    "-u": "nproc",
}
_UNITS = {"memlock": 1024}  # ulimit speaks of KiB
_LIMIT = (
    r"^\s*(?P<name>max locked memory|Max locked memory|open files|Max open files|max user processes|Max processes)\s+"
    r"(?:\((?:[a-z]+, )?(?P<flag>-[lnu])\)\s+(?P<value>\S+)|(?P<soft>unlimited|\d+)\s+(?P<hard>unlimited|\d+))"
)
_ASKED = r"ulimit (?:-[SH] ?)?(?P<flag>-[lnu])\b(?: ?[:=] ?(?P<value>unlimited|\d+)|[^\d:=]*$)"


def _shm(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if (match := re.search(_COMPOSE, line.body)) and (size := _bytes(match["size"])) is not None:
        yield line.fact("shm", {"size": size})


_COMPOSE = r"\bshm_size: *['\"]?(?P<size>[\d.]+ ?[a-zA-Z]*)"


def _run(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    text = line.body[:8192]
    while text.rstrip().endswith("\\") and (more := next(following, None)) is not None and len(text) < 8192:
        text = text.rstrip()[:-1] + " " + more.body.strip()
    program = re.search(_RUN, text)
    if not program:
        return
    fields: dict[str, object] = {"program": program["program"]}
    ulimits = []
    for match in _OPTION.finditer(text, program.end()):
        if match["name"] == "ulimit" and match["value"]:
            ulimits.append(match["value"])
        elif match["name"] == "privileged":
            fields["privileged"] = True
        elif (name := _OPTIONS.get(match["name"])) and match["value"]:
            value = match["value"].strip("\"'")
            fields[name] = _bytes(value) if name in ("shm_size", "memory") else value
    yield line.fact("container", {**fields, **({"ulimit": ulimits} if ulimits else {})})


def _ulimits(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """`"Ulimits": [` of docker inspect."""
    said: dict[str, object] = {}
    for each in following:
        match = re.match(r'\s*"(Name|Hard|Soft)": "?([\w-]+)"?', each.body)
        if match:
            said[match[1].lower()] = (
                match[2] if match[1] == "Name" else "unlimited" if match[2] == "-1" else int(match[2]) if match[2].isdigit() else match[2]
            )
            if len(said) == 3:
                yield each.fact("limit", said)
                said = {}
        elif "]" in each.body:
            return


def _df(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    plain = 1024 if "1K-blocks" in line.body else 1024 * 1024 if "1M-blocks" in line.body else 1
    for each in following:
        row = _ROW.match(each.body)
        if not row:
            return
        sizes = {name: (_bytes(row[name]) or 0) * (plain if row[name].isdigit() else 1) for name in ("size", "used", "available")}
        if row["mount"] == "/dev/shm":
            yield each.fact("shm", sizes)
        elif int(row["percent"]) >= _FULL and row["source"] not in ("squashfs", "overlay-ro") and not row["mount"].startswith("/snap"):
            yield each.fact("filesystem", {"mount": row["mount"], "percent": int(row["percent"]), **sizes})


def _limit(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(_LIMIT, line.body):
        name = _LIMITS[match["name"].lower()]
        if match["flag"]:
            yield line.fact("limit", {"name": name, "soft": _amount(match["value"], name)})
        else:
            yield line.fact("limit", {"name": name, "soft": _amount(match["soft"]), "hard": _amount(match["hard"])})


def _asked(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """`$ ulimit -l` with its answer below, or `ulimit -l: 64`."""
    if not (match := re.search(_ASKED, line.body)):
        return
    name, said = _LIMITS[match["flag"]], line
    value = match["value"]
    if value is None and (after := next(following, None)) is not None and re.fullmatch(r"\s*(?:unlimited|\d+)\s*", after.body):
        said, value = after, after.body.strip()
    if value is not None:
        yield said.fact("limit", {"name": name, "soft": _amount(value, name)})


def _amount(text: str, name: str = "") -> int | str:
    return int(text) * _UNITS.get(name, 1) if text.isdigit() and len(text) < 19 else text


def _bytes(text: str) -> int | None:
    """`64M`, `16g`, `0`; None where it is no size."""
    text = text.strip().removesuffix("i")
    if re.fullmatch(r"0+[KMGTP]?", text):
        return 0
    scale = 2**10 if text[-1:] in "TtPp" else 1
    try:
        size = parse_bytes(re.sub(r"[TtPp]$", "G", re.sub(r"(?i)([kmg])b$", r"\1", text)))
    except ValueError:
        return None
    return size * scale * (2**10 if text[-1:] in "Pp" else 1)


READS = (
    Clue("shm", r'"ShmSize": ?(?P<size>\d+)'),
    Clue("container", r'"IpcMode": ?"(?P<ipc>[^"]*)"'),
    Clue("container", r'"NetworkMode": ?"(?P<network>[^"]*)"'),
    Clue("container", r'"Memory": ?(?P<memory>[1-9]\d*)'),
    Block(r'"Ulimits": ?\[', _ulimits),
    Block(_COMPOSE, _shm),
    Block(_RUN, _run, mixed=True),
    Block(_DF, _df),
    Block(_LIMIT, _limit),
    Block(_ASKED, _asked),
)
