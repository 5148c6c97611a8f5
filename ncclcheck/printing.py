"""Where a result goes and in which format: checked before anything runs, written when it is there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ncclcheck import report
from ncclcheck.model import Report


class Usage(Exception):
    """The command line asks for something that cannot be; one line says what and why."""


def check(given: Mapping[str, Any]) -> None:
    """Raises Usage where --format is unknown or --output cannot be written."""
    if given["form"] not in report.formats():
        raise Usage(f"--format {given['form']} is not known; choose from {', '.join(report.formats())}")
    if given["output"]:
        writable(Path(given["output"]).resolve().parent)
        if Path(given["output"]).is_dir():
            raise Usage(f"cannot write to {given['output']}: Is a directory")


def show(result: Report, given: Mapping[str, Any], out: TextIO, brief: bool = False) -> None:
    """Print the result, or write it to --output; `brief` prints only its sentence."""
    if given["form"] == "text" and not given["output"]:
        from ncclcheck.report import text

        rendered = f"{result.summary}\n" if brief else text.render(result, color=out.isatty() and "NO_COLOR" not in os.environ)
    else:
        rendered = report.render(result, given["form"])
    if given["output"]:
        Path(given["output"]).write_text(rendered, encoding="utf-8")
        return
    with contextlib.suppress(BrokenPipeError):  # who closed the pipe has read enough
        out.write(rendered)
        out.flush()


def writable(folder: Path) -> Path:
    """A folder in which files can be made; it is made if need be. Raises Usage."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise Usage(f"cannot write to {folder}: {error.strerror}") from None
