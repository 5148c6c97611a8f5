"""Who speaks in a line, and when: what launchers, loggers and NCCL put before a message, and what a file's name says.

Reads
    log a.log: (RayWorkerWrapper pid=703, ip=10.4.0.12) gpu-12:703:991 [0] NCCL INFO NCCL version 2.21.5+cuda12.4
    => address address=10.4.0.12 host=gpu-12
    => nccl-version host=gpu-12 pid=703
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ncclcheck.evidence._reads import Clue, Place

_HOST = r"[A-Za-z0-9][\w.-]*"
_CLOCK = r"\d{1,2}:\d\d:\d\d(?:[.,]\d+)?"
_PREFIX = re.compile(
    "|".join(
        (
            rf"\[(?P<iso>\d{{4}}-\d\d-\d\d[ T]{_CLOCK})(?:Z|[+-]\d\d:?\d\d)?(?: (?:[DP]P\d+ )?(?:TP(?P<tp>\d+))?[^\]]*)?\]:?\s*",  # NCCL WARN; SGLang
            rf"(?P<iso2>\d{{4}}[-/]\d\d[-/]\d\d[ T]{_CLOCK})(?:Z|[+-]\d\d:?\d\d)?[\s,|:]*(?:- )?",  # ISO, Ray, kubectl --timestamps
            rf"(?P<syslog>(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +\d+ {_CLOCK}) (?P<syshost>{_HOST}) (?=kernel|[\w./-]+(?:\[\d+\])?:)",
            rf"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<vllm>\d\d-\d\d {_CLOCK}) ",  # vLLM
            rf"\[?(?P<glevel>[IWEFC])(?P<glog>\d{{4}} {_CLOCK}) (?:(?P<gpid>\d+) )?(?=\S+\])",  # c10d, torchelastic
            r"\[rank(?P<torch>\d+)\]:?\s*",  # torch: a rank of the job, whatever number a launcher puts before it
            r"\[[Rr]ank ?(?P<rank>\d+)\]:?\s?",  # Lightning
            r"\[(?:default|trainer|worker)_?(?P<role>\d+)(?:\|\d+)?\]:\s*",  # torchrun --tee: a local rank
            r"\[(?:\d+,)?(?P<tagged>\d+)\]<(?:stdout|stderr)>:\s?",  # mpirun --tag-output, horovod
            r" {0,4}(?P<srun>\d{1,5}): (?=\S)(?!\S+: (?:<|flags))",  # srun --label, but not the lines of `ip`
            rf"\[(?:pod/)?(?P<pod>{_HOST})/{_HOST}\] ",  # kubectl logs --prefix
            rf"(?P<compose>{_HOST})\s+\| ",  # docker compose
            rf"(?P<nccl>{_HOST}):(?P<ncclpid>\d+):\d+ \[(?P<cudadev>-?\d+)\] ",  # NCCL
            r"\((?:\w*Worker_(?:DP\d+_)?(?:PP(?P<wpp>\d+)_)?TP(?P<wtp>\d+)\w*|VllmWorker(?:-| rank=)(?P<wrank>\d+))"
            r"(?: pid=(?P<wpid>\d+))?(?:, ip=(?P<wip>[\w.:-]+))?\)\s",  # vLLM's workers
            r"\((?:[A-Za-z_][\w:.-]* )?pid=(?P<pid>\d+)(?:, ip=(?P<ip>[\w.:-]+))?[^)]*\)\s",  # vLLM, Ray
            rf"{_CLOCK} (?=[(\[]|[A-Z]+ )",  # a time without a date
            r"\((?P<raylet>raylet|autoscaler)[^)]*\)\s?",
            rf"(?P<file>{_HOST}\.(?:log|txt|out|err)):(?=\S)",  # grep -H
            rf"(?P<pdsh>(?![\w.]{{1,90}}(?:Error|Exception|Warning|Interrupt):){_HOST}): "
            r"(?=\[[\w ]|\S+ +NCCL |W\d|E\d|Traceback|  File )",  # pdsh, DeepSpeed
        )
    )
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = (0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335)
_INSIDE = re.compile(r"\[(?:PG (?:ID )?0 (?:PG GUID [^\]]*)?|PG [^\]]*\(default_pg\) |)Rank (\d+)\]")  # in other groups it counts within them
_MOST_PREFIXES = 6
_NAMED_RANK = re.compile(r"(?:^|[^a-z])rank[_-]?(\d+)(?!\d)", re.I)
_NO_HOSTS = (
    "nccl ncclras pyspy py-spy spy proc fr stack stacks log logs out err stdout stderr txt json pkl pickle dump trace node report debug info "
    "output worker rank dmesg env environ ip ss ifconfig nvidia-smi smi slurm job train vllm engine ray raylet gdb status tar gz zip tgz "
    "bundle head tail server client master console container local global attempt run exp experiment trial test step epoch checkpoint ckpt "
)
_BUNDLED = re.compile(
    r"(?:^|/)(?:pyspy|proc|env|log)\.(?P<host>[^/]+?)\.(?:rank(?P<rank>\d+)\.)?(?P<pid>\d+)\.[^/]*$"
)  # as `ncclcheck collect` names them
_KIND = re.compile(r"(?:-(?:dmesg|kern|journal|nvidia-smi(?:-q)?|smi|ibstat|topo|log|env|nccl|pyspy|stack))+$")  # `gpu-17-dmesg.log`
READS = (Clue("address", r"pid=\d+, ip=(?P<address>[\w.:-]+)\) (?P<host>[A-Za-z0-9][\w.-]*):\d+:\d+ \["),)  # Ray's prefix before NCCL's
_TELLING = re.compile(r"\d+|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|(?<=[a-z])[A-Z]$")
_MACHINE = re.compile(r"(?:(?i:gpu|node|host|dgx|hgx|compute)[-_]?){1,2}(?:[a-z]{0,2}\d+[a-z]?|[A-Z]|(?<=[-_])[a-z])")  # gpu-a07, nodeB, node-b
_VARIANT = re.compile(r"\d[bBmM]$|[-_]v\d+$")  # a model (32B) or a version
_NOBODY = Place()
_WORDS = frozenset(_NO_HOSTS.split())
_OF_EVIDENCE = "nccl pyspy py-spy proc stack stacks gdb dmesg kern journal env environ ip ss ifconfig nvidia-smi smi ibstat topo"
_KINDS = frozenset(_OF_EVIDENCE.split())


def of_line(text: str) -> tuple[Place, str, float | None]:
    """The speaker, the rest of the line, and the time in seconds since the year began."""
    if text[:1] in (" ", "\t") and not text.lstrip(" ")[:1].isdigit():  # an indented line has no prefix, but for a number of srun's
        return _NOBODY, text, None
    host: str | None = None
    rank = pid = local = address = None
    time: float | None = None
    at = 0
    for _ in range(_MOST_PREFIXES):
        match = _PREFIX.match(text, at)
        if not match or match.end() == at:
            break
        at = match.end()
        groups = {name: value for name, value in match.groupdict().items() if value is not None}
        for name, value in groups.items():
            match name:
                case "iso" | "iso2" | "syslog" | "vllm" | "glog":
                    time = time if time is not None else _seconds(value)
                case "torch":
                    rank = int(value)
                case "rank" | "tagged" | "srun" | "tp" | "wrank":
                    rank = rank if rank is not None else int(value)
                case "wtp" if not groups.get("wpp"):
                    rank = rank if rank is not None else int(value)
                case "role":
                    local = int(value)
                case "nccl" | "syshost" | "pdsh" | "pod" | "compose":
                    host = host or value
                case "ip" | "wip":
                    address = value
                case "file":
                    named = of_name(value)
                    host, rank = host or named.host, rank if rank is not None else named.rank
                case "pid" | "wpid" | "ncclpid" | "gpid":
                    pid = pid if pid is not None else int(value)
    if rank is None and (inside := _INSIDE.search(text, at, at + 200)):
        rank = int(inside[1])
    return Place(host or address, rank, pid, local), text[at:], time


def of_name(name: str) -> Place:
    """What a file's path may say: `logs/gpu-07.rank3.log` -> host gpu-07, rank 3. Whether that is a host hosts_of() tells."""
    if match := _BUNDLED.search(name):
        return Place(match["host"], int(match["rank"]) if match["rank"] else None, int(match["pid"]))
    rank = None
    parts = name.split("/")
    for part in reversed(parts):
        if rank is None and (match := _NAMED_RANK.search(part)):
            rank = int(match[1])
    return Place(next((word.text for word in _words(parts)), None), rank)


def hosts_of(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """The host in the name of each file where something bears it out, since a name is as often a model's or an experiment's.

    That is a rank or a kind of evidence beside it (`h7.rank3.log`, `h7-dmesg.log`), a word for a machine in it (`node7.log`),
    that it is among the hosts `known` otherwise, or files or folders beside it that are named alike (`kay-7.log`, `kay-8.log`).
    """
    words = {name: list(_words(name.split("/"))) for name in names}
    alike: dict[tuple[str, str], set[str]] = {}
    for word in (word for several in words.values() for word in several):
        alike.setdefault(word.scheme, set()).add(word.text)
    result = {}
    for name, several in words.items():
        bundled = _BUNDLED.search(name)
        host = bundled["host"] if bundled else None
        host = host or next((word.text for word in several if word.sure or word.text in known or len(alike[word.scheme]) > 1), None)
        if host:
            result[name] = host
    return result


class _Word(NamedTuple):
    """A word of a path that may be a host. `scheme` is its folder and the word without what tells hosts of one cluster apart."""

    text: str
    sure: bool
    scheme: tuple[str, str]


def _words(parts: list[str]) -> Iterator[_Word]:
    """What is left of a file's name, then of its folders, without the words that say what kind of file it is."""
    for depth in range(len(parts) - 1, -1, -1):
        part = parts[depth]
        pieces = re.split(r"[._](?![0-9]+\.[0-9]+)", _NAMED_RANK.sub(".", part))
        sure = bool(_NAMED_RANK.search(part)) or not _KINDS.isdisjoint(piece.lower() for piece in pieces)
        for named in pieces:
            piece = _KIND.sub("", named)
            bare = re.sub(r"(?:-v)?[\d-]+$", "", piece).lower()
            if (
                len(piece) > 2
                and piece.lower() not in _WORDS
                and bare not in _WORDS
                and re.search(r"[A-Za-z]", piece)
                and re.search(r"[\dA-Z-]", piece)
            ):
                shape = piece if _VARIANT.search(piece) else _TELLING.sub("#", piece)
                yield _Word(piece, sure or piece != named or bool(_MACHINE.fullmatch(piece)), ("/".join(parts[:depth]), shape))


def _seconds(stamp: str) -> float | None:
    """`1122 11:33:48.5`, `11-22 12:03:55`, `2026-11-22 11:34:22`, `Nov 22 11:34:22` -> seconds since the year began."""
    day, _, clock = stamp.replace("T", " ").replace("/", "-").rpartition(" ")
    if day[:3] in _MONTHS:
        month, date = _MONTHS.index(day[:3]) + 1, int(day[3:])
    else:
        digits = day.replace("-", "")[-4:]
        month, date = int(digits[:2]), int(digits[2:])
    if not 1 <= month <= 12:
        return None
    hours, minutes, seconds = clock.replace(",", ".").split(":")
    return (_DAYS[month - 1] + date) * 86400.0 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
