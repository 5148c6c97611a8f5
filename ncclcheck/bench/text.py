"""A measurement as text for people."""

from __future__ import annotations

import textwrap

from tabulate import tabulate

from ncclcheck import secrets
from ncclcheck.bench import tables, words
from ncclcheck.bench.found import Found
from ncclcheck.safe_text import printable
from ncclcheck.units import seconds_text

WIDTH = 100
_LEFT = ("layout", "what", "from", "to", "bound by", "why")


def render(found: Found) -> str:
    """Tables, answers, and last the sentence."""
    where = found.where
    head = (
        f"{where.get('model')} with vLLM {where.get('vllm')} on {where.get('device')}; vllm serve {' '.join(found.plan.reference.server.arguments())}"
    )
    blocks = ["\n".join(_wrap(head, "  "))]
    for table in tables.of(found):
        rows = [[printable(cell) for cell in row] for row in table.rows]
        align = ["left" if header in _LEFT else "right" for header in table.headers]
        shown = tabulate(rows, table.headers, tablefmt="simple", disable_numparse=True, colalign=align, maxcolwidths=[40] * len(table.headers))
        blocks.append("\n".join([*_wrap(table.title), *(line.rstrip() for line in shown.splitlines())]))
    for title, lines in (("how to set it", words.advice(found)), ("where the bottleneck is", words.bottleneck(found)), ("notes", words.notes(found))):
        if told := [line for text in lines for line in _wrap(f"  {text}", "    ")]:
            blocks.append("\n".join([title, *told]))
    blocks.append("\n".join(_wrap(f"{sentence(found)} [{seconds_text(found.seconds)}]")))
    return secrets.mask("\n\n".join(blocks)) + "\n"


def sentence(found: Found) -> str:
    """The last line: a word in capitals, and the summary; it always says when the nodes were emulated."""
    word = "MEASURED" if found.status.value == "healthy" else "INCOMPLETE" if found.results else "NOT MEASURED"
    emulated = " (emulated on this machine; your cluster was not measured)" if found.emulated else ""
    return f"{word}{emulated}: {words.summary(found)}"


def _wrap(text: str, indent: str = "") -> list[str]:
    own = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(printable(text).strip(), WIDTH, initial_indent=own, subsequent_indent=indent, break_on_hyphens=False) or [""]
