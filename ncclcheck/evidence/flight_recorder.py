"""Reads what PyTorch's flight recorder wrote (pickle or JSON, torch 2.2 and later, any backend) into a compact Dump."""

from __future__ import annotations

import gc
import io
import marshal
import pickle
import re
from array import array
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NoReturn

import msgspec

from ncclcheck.evidence._newest import FIRST, NEWEST, shortened
from ncclcheck.recorder import ABORTED, COMPLETED, SCHEDULED, STARTED, Calls, Dump, Group, Signature

_KEYS = rb'"(?:version|pg_config|pg_status|entries|comm_lib_version|nccl_comm_state|nccl_version|rank|host_name)"'
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"')
_TELLING = re.compile(rb'"(?:pg_config|pg_status|collective_seq_id|profiling_name|nccl_comm_state)"\s*:')
_CALL = ("profiling_name", "input_sizes", "output_sizes", "input_dtypes", "output_dtypes")
_STATES = {"scheduled": SCHEDULED, "started": STARTED, "completed": COMPLETED}
_LARGEST = (1 << 62) - 1  # sequence numbers and times beyond it are not believed
_MOST_TENSORS, _MOST_DIMENSIONS = 1 << 16, 32
_IN_TIME = 64  # newest calls that completed in time, before which none can have been aborted
_NONE = Calls(array("q"), array("I"), b"", array("I"))
_SITES = 16  # newest records whose line in the user's code is kept

# NCCL compares nothing; these counts have to be equal on every member, or the operation hangs or corrupts. Of the others (gather,
# scatter, all_to_all, ...) each member may have its own.
_EQUAL_INPUTS = frozenset(
    (
        "all_reduce",
        "allreduce_coalesced",
        "all_reduce_barrier",
        "barrier",
        "broadcast",
        "_broadcast_oop",
        "reduce",
        "_reduce_oop",
        "_all_gather_base",
        "all_gather_into_tensor_coalesced",
        "all_gather_single",
        "ALLGATHER_coalesced",
        "reduce_scatter",
    )
)
_EQUAL_OUTPUTS = frozenset(
    ("all_gather", "_reduce_scatter_base", "reduce_scatter_tensor_coalesced", "reduce_scatter_single", "REDUCE_SCATTER_coalesced")
)
_BASE = re.compile(r"[/\\]")
_FOREIGN = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]torch[/\\](?:distributed|nn|utils|_\w+|autograd)[/\\]|[/\\]lib[/\\]python3|^<")


class _Plain(pickle.Unpickler):
    """Builds containers, numbers and strings, and nothing else: whatever would look up or call a name is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"forbidden: it would call {module[:60]!r}.{name[:60]!r}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("forbidden: it refers to an object outside the file")


def sniff(head: bytes, name: str) -> bool:
    """Whether this may be a dump: any pickle (its reader refuses what is harmful), or JSON that begins like one."""
    if len(head) > 2 and head[0] == 0x80 and head[1] <= 5:
        return head[2:3] in b"}](\x95cX\x8cKJMNh" or name.endswith((".pkl", ".pickle"))
    return bool(_JSON.match(head) and re.search(_KEYS, head[:200]) and _TELLING.search(head))


def read(data: bytes, name: str) -> Dump:
    """The dump in these bytes. Raises ValueError, with one sentence, for what is none, is cut off, or is forbidden."""
    collecting = gc.isenabled()
    gc.disable()  # half of the time of building a hundred thousand containers; nothing in them can be garbage
    try:
        document, left_out = _newest(data)
        if document is None:
            document, left_out = _load(data) if data[:1] == b"\x80" else msgspec.json.decode(data), 0
        if not isinstance(document, dict) or not {"entries", "pg_config", "pg_status"} & document.keys():
            raise ValueError("it is no flight recorder's dump: there are no entries in it")
        return _dump(document, name, left_out)
    except MemoryError:
        raise ValueError("reading it would fill the memory") from None
    except EOFError:
        raise ValueError("it is cut off: the dump was not written to its end") from None
    except msgspec.DecodeError as error:
        cut = "truncated" in str(error)
        raise ValueError("it is cut off: the dump was not written to its end" if cut else f"it is no JSON document: {error}") from None
    except pickle.UnpicklingError as error:
        cut = "truncated" in str(error)
        raise ValueError("it is cut off: the dump was not written to its end" if cut else f"it is no readable dump: {error}") from None
    except (RecursionError, OverflowError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"it is no readable dump: {type(error).__name__}: {str(error)[:200]}") from None
    finally:
        if collecting:
            gc.enable()


def _load(data: bytes) -> Any:
    """What a pickle says; buffered, since an unpickler that can peek ahead is three times as fast."""
    return _Plain(io.BufferedReader(io.BytesIO(data), 1 << 17)).load()


def _newest(data: bytes) -> tuple[dict[Any, Any] | None, int]:
    """A long dump with its newest records only, and how many were left out before them; None where that cannot be told."""
    short = shortened(data)
    if short is None:
        return None, 0
    try:
        document = _load(short)
        entries = document["entries"]
        numbers = [entry["record_id"] for entry in entries]
        newest = numbers[-NEWEST:]
        left_out = newest[0] - numbers[0]
        if len(entries) != FIRST + NEWEST or newest != list(range(newest[0], newest[0] + NEWEST)) or left_out < FIRST:
            return None, 0
        return {**document, "entries": entries[-NEWEST:]}, left_out
    except Exception:  # it is written in another way: then the whole is read, and what is wrong is said there
        return None, 0


def _dump(document: dict[Any, Any], name: str, left_out: int) -> Dump:
    entries = document.get("entries")
    entries = entries if isinstance(entries, list) else []
    if set(map(type, entries)) - {dict}:
        entries = [entry if isinstance(entry, dict) else {} for entry in entries]
    signatures, kinds = _signatures(entries)
    names = _names(entries)
    collective = any("collective_seq_id" in entry for entry in entries[:1])
    numbers = _numbers(entries, "collective_seq_id" if collective else "seq_id")
    states = _states(entries)
    rows: dict[tuple[tuple[str, str], bool], Sequence[int]] = {}
    p2p = [signature.pair is not None for signature in signatures]
    alone, paired = len(set(names)) == 1, any(p2p)
    p2p_numbers = _numbers(entries, "p2p_seq_id") if collective and paired else numbers
    if alone and not paired:  # most dumps
        rows[names[0], False] = range(len(entries))
    else:
        keys = list(zip(names, map(p2p.__getitem__, kinds), strict=True))
        for key in dict.fromkeys(keys):
            rows[key] = [at for at, other in enumerate(keys) if other == key]
    if "coalesced" in (operations := [signature.operation for signature in signatures]):  # the end of a batch: its members stand before it
        rows = {key: [at for at in ats if operations[kinds[at]] != "coalesced"] for key, ats in rows.items()}
    some = entries[:1] if alone else entries
    ids = {str(number)[:20]: pg for number, pg in dict(zip(_numbers(some, "pg_id"), names, strict=False)).items()}
    told = _told(document, ids)
    groups: dict[str, Group] = {}
    for pg in dict.fromkeys([*told, *(pg for pg, _ in rows)]):
        ranks, enqueued, completed = told.get(pg, (None, None, None))
        messages = _calls(rows.get((pg, True), ()), p2p_numbers, kinds, states, left_out)
        collectives = _calls(rows.get((pg, False), ()), numbers, kinds, states, left_out)
        countable = True
        if len(messages) and not collective:
            countable = 1 in (*collectives.seqs[:1], messages.seqs[0])
            collectives = _renumbered(collectives) if countable else _NONE
        collectives, signatures = _batches(collectives, signatures)
        if len(collectives):
            enqueued = max(enqueued or 0, collectives.seqs[-1])
        groups[pg[0]] = Group(*pg, ranks, enqueued, completed, collectives, messages, countable)
    return Dump(
        name,
        _rank(document, name, groups, signatures),
        host if isinstance(host := document.get("host_name"), str) else None,
        groups,
        signatures,
        _sites(entries, kinds, left_out),
    )


def _column(entries: Sequence[dict[str, Any]], key: str) -> list[Any]:
    try:
        return list(map(itemgetter(key), entries))
    except KeyError:
        return [entry.get(key) for entry in entries]


def _numbers(entries: Sequence[dict[str, Any]], key: str) -> array[int]:
    values = _column(entries, key)
    if set(map(type, values)) - {int} or (values and not 0 <= min(values) <= max(values) <= _LARGEST):
        values = [value if type(value) is int and 0 <= value <= _LARGEST else 0 for value in values]
    return array("q", values)


def _pg(value: object) -> tuple[str, str]:
    """("0", "default_pg") of the many ways to write a group's name."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is str:
        return value
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = [str(part)[:200] for part in parts[:2] if isinstance(part, (str, int))]
    return (texts[0] if texts else "0", texts[1] if len(texts) > 1 else "")


def _names(entries: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    values = _column(entries, "process_group")
    try:
        distinct = {value: _pg(value) for value in set(values)}
        return list(map(distinct.__getitem__, values))
    except TypeError:  # JSON has lists, which cannot be keys
        return list(map(_pg, values))


def _states(entries: Sequence[dict[str, Any]]) -> bytes:
    """What completed only when its time was over was aborted by the watchdog: its peers never came."""
    values = _column(entries, "state")
    try:
        states = bytearray(map(_STATES.__getitem__, values))
    except (KeyError, TypeError):
        states = bytearray(_STATES.get(value, SCHEDULED) if isinstance(value, str) else SCHEDULED for value in values)
    in_time = 0
    for at in range(len(entries) - 1, -1, -1):
        if states[at] != COMPLETED:
            continue
        done, created, limit = map(entries[at].get, ("time_discovered_completed_ns", "time_created_ns", "timeout_ms"))
        if type(done) is type(created) is type(limit) is int and 0 < limit * 1_000_000 <= done - created:
            states[at] = ABORTED
            in_time = 0
        elif (in_time := in_time + 1) > _IN_TIME:
            break
    return bytes(states)


def _signatures(entries: Sequence[dict[str, Any]]) -> tuple[tuple[Signature, ...], array[int]]:
    """The distinct calls, in order of appearance, and each entry's index among them."""
    try:
        raw = list(map(itemgetter(*_CALL), entries))
    except KeyError:
        raw = [tuple(map(entry.get, _CALL)) for entry in entries]
    keys = list(map(marshal.dumps, raw))  # writes once what is shared: lists that hold each other take no memory
    first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
    indexes: dict[Signature, int] = {}
    of_key = {key: indexes.setdefault(_signature(*raw[at]), len(indexes)) for key, at in sorted(first.items(), key=itemgetter(1))}
    return tuple(indexes), array("I", map(of_key.__getitem__, keys))


def _signature(name: object, inputs: object, outputs: object, dtypes: object, output_dtypes: object) -> Signature:
    operation, _, pair = (name if isinstance(name, str) else "unknown")[:200].rpartition(":")[2].partition(" ")
    sizes_in, sizes_out = _sizes(inputs), _sizes(outputs)
    dtype = ",".join(dict.fromkeys(_texts(dtypes) or _texts(output_dtypes)))
    text = " ".join(part for part in (_shapes(sizes_in), dtype) if part)
    if operation in ("send", "recv") and (match := re.fullmatch(r"(\d{1,9})(->|<-)(\d{1,9})", pair)):
        ends = (int(match[1]), int(match[3])) if match[2] == "->" else (int(match[3]), int(match[1]))
        return Signature(f"{operation} {pair}", text, f"{_count(sizes_in)} {dtype}".strip(), ends)
    if operation in _EQUAL_INPUTS:
        return Signature(operation, text, f"{operation} {_count(sizes_in)} {dtype}".rstrip())
    if operation in _EQUAL_OUTPUTS:
        return Signature(operation, f"{text} -> {_shapes(sizes_out)}", f"{operation} {_count(sizes_out)} {dtype}".rstrip())
    return Signature(operation, text, operation)


def _texts(values: object) -> list[str]:
    return [value[:20] for value in values[:_MOST_TENSORS] if isinstance(value, str)] if isinstance(values, (list, tuple)) else []


def _sizes(value: object) -> list[list[int]] | None:
    """A list of shapes, if it is one."""
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_TENSORS:
        return None
    shapes = [list(shape) for shape in value if isinstance(shape, (list, tuple)) and len(shape) <= _MOST_DIMENSIONS]
    return shapes if all(type(size) is int and abs(size) <= _LARGEST for shape in shapes for size in shape) else None


def _count(shapes: list[list[int]] | None) -> str:
    """The number of elements in all of them; nothing where it was not recorded."""
    total = 0
    for shape in shapes or ():
        elements = 1
        for size in shape:
            elements *= size
        total += elements
    return str(total) if shapes else ""


def _shapes(shapes: list[list[int]] | None) -> str:
    shown = " ".join(str(shape) for shape in (shapes or ())[:3])
    return f"{shown} and {len(shapes) - 3} more" if shapes and len(shapes) > 3 else shown


def _calls(at: Sequence[int], numbers: array[int], kinds: array[int], states: bytes, left_out: int) -> Calls:
    """The rows of these entries, before which `left_out` stood. A 0 is no number; one that falls back belongs to the group's earlier life."""
    values = list(map(numbers.__getitem__, at))
    if len(values) == len(numbers) and values and values[0] > 0 and sorted(values) == values:  # most dumps
        return Calls(array("q", values), kinds, states, array("I", range(left_out + 1, left_out + len(values) + 1)))
    kept = [i for i, value in zip(at, values, strict=True) if value > 0]
    values = list(map(numbers.__getitem__, kept))
    if sorted(values) != values:
        kept = kept[max(i for i in range(1, len(values)) if values[i] < values[i - 1]) :]
    return Calls(
        array("q", map(numbers.__getitem__, kept)),
        array("I", map(kinds.__getitem__, kept)),
        bytes(map(states.__getitem__, kept)),
        array("I", map((left_out + 1).__add__, kept)),
    )


def _renumbered(calls: Calls) -> Calls:
    """Before torch 2.4 sends and receives took numbers out of the same sequence: collectives are counted instead, if the first is still there."""
    return Calls(array("q", range(1, len(calls) + 1)), calls.kinds, calls.states, calls.records)


def _batches(calls: Calls, signatures: tuple[Signature, ...]) -> tuple[Calls, tuple[Signature, ...]]:
    """One row per sequence number: the operations of a coalesced batch share one, and together are one call."""
    if len(set(calls.seqs)) == len(calls):
        return calls, signatures
    known = {signature: index for index, signature in enumerate(signatures)}
    rows: dict[int, list[int]] = {}
    for at, seq in enumerate(calls.seqs):
        rows.setdefault(seq, []).append(at)
    kinds = array("I")
    for ats in rows.values():
        parts = [signatures[calls.kinds[at]] for at in ats]
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        joined = parts[0]._replace(text=parts[0].text + more, must=" + ".join(part.must for part in parts))
        kinds.append(known.setdefault(joined, len(known)))
    last = [ats[-1] for ats in rows.values()]
    states = bytes(min(calls.states[at] for at in ats) for ats in rows.values())
    return Calls(array("q", rows), kinds, states, array("I", (calls.records[at] for at in last))), tuple(known)


def _told(document: dict[Any, Any], ids: dict[str, tuple[str, str]]) -> dict[tuple[str, str], tuple[tuple[int, ...] | None, int | None, int | None]]:
    """What the dump says of its groups beside the entries: members, last enqueued, last completed."""
    config, status = document.get("pg_config"), document.get("pg_status")
    ranks: dict[tuple[str, str], tuple[int, ...] | None] = {}
    if isinstance(config, dict):
        for key, value in config.items():
            if isinstance(value, dict):
                ranks[_pg((value.get("name", key), value.get("desc", "")))] = _members(value.get("ranks"))
            elif isinstance(value, (list, tuple)):
                ranks[_pg((key, value[-2] if len(value) > 1 else ""))] = _members(value[-1] if value else None)
    reached: dict[tuple[str, str], tuple[int | None, int | None]] = {}
    if isinstance(status, dict):
        for key, value in status.items():
            pg = ids.get(str(key)) or next((pg for pg in ranks if pg[0] == str(key) == "0" or len(ranks) == 1), None)
            if isinstance(value, dict) and pg is not None:
                reached[pg] = (_last(value.get("last_enqueued_collective")), _last(value.get("last_completed_collective")))
    return {pg: (ranks.get(pg), *reached.get(pg, (None, None))) for pg in dict.fromkeys([*ranks, *reached])}


def _members(value: object) -> tuple[int, ...] | None:
    if isinstance(value, str) and len(value) < 1 << 24:
        return tuple(sorted({int(rank) for rank in re.findall(r"\b\d{1,9}\b", value)})) or None
    if isinstance(value, (list, tuple)):
        return tuple(sorted({rank for rank in value if type(rank) is int and 0 <= rank <= 10**9})) or None
    return None


def _last(value: object) -> int | None:
    """A sequence number; -1 means that there was none yet."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        value = int(value)
    return max(value, 0) if type(value) is int and value <= _LARGEST else None


def _rank(document: dict[Any, Any], name: str, groups: dict[str, Group], signatures: Iterable[Signature]) -> int | None:
    """From the document, from the file's name if that says `rank`, from a send or recv, from a number at the name's end."""
    base = _BASE.split(name)[-1]
    said = document.get("rank")
    if type(said) is int and 0 <= said <= 10**9:
        return said
    if match := re.search(r"(?i)(?:^|[^a-z])rank[_.=-]?(\d{1,9})(?!\d)", base):
        return int(match[1])
    for group in groups.values():
        if len(group.p2p) and group.ranks:
            signature = tuple(signatures)[group.p2p.kinds[-1]]
            own = (signature.pair or (-1, -1))[signature.operation.startswith("recv")]
            if 0 <= own < len(group.ranks):
                return group.ranks[own]
    match = re.search(r"(?<![.\d])(0|[1-9]\d{0,8})(?:\.(?:pkl|pickle|json|bin|dump|trace|txt))*$", base)
    return int(match[1]) if match else None


def _sites(entries: Sequence[dict[str, Any]], kinds: array[int], left_out: int) -> dict[int, str]:
    """Record -> `train.py:65 in train`, for the newest records and the newest of each kind."""
    newest = {kind: at for at, kind in enumerate(kinds)}
    chosen = {*range(max(0, len(entries) - _SITES), len(entries)), *list(newest.values())[:256]}
    return {left_out + at + 1: site for at in sorted(chosen) if (site := _site(entries[at].get("frames")))}


def _site(frames: object) -> str:
    """The innermost frame that is the user's own, else the innermost that is known."""
    known = [frame for frame in frames[:64] if isinstance(frame, dict)] if isinstance(frames, list) else []
    own = next((frame for frame in known if not _FOREIGN.search(str(frame.get("filename", ""))[:4096])), known[0] if known else None)
    if own is None:
        return ""
    file, line, function = (str(own.get(key, "?"))[-200:] for key in ("filename", "line", "name"))
    return f"{_BASE.split(file)[-1]}:{line} in {function}"
