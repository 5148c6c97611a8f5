"""Where a result goes and in which format: checked before anything runs, written when it is there."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ncclcheck import report, safe_files
from ncclcheck.model import Report
from ncclcheck.safe_text import printable

_WITHOUT_EVIDENCE = ("prometheus",)  # numbers, for a collector that runs as another user
_FOR_OTHERS = 0o666  # as far as the user's umask allows


class Usage(Exception):
    """The command line asks for something that cannot be; one line says what and why."""


class Full(Usage):
    """Nothing can be written there because the disk is full, or this user's part of it."""


def check(given: Mapping[str, Any]) -> None:
    """Raises Usage where --format is unknown or --output cannot be written."""
    if given["form"] not in report.formats():
        raise Usage(f"--format {given['form']} is not known; choose from {', '.join(report.formats())}")
    if given["output"]:
        check_output(given["output"])


def check_output(output: str) -> None:
    """Raises Usage where nothing can be written there, or another user's file or link is there."""
    try:
        safe_files.check(Path(output))
    except safe_files.Refused as error:
        raise Usage(f"--output: {error}") from None
    except OSError as error:
        place = output if isinstance(error, IsADirectoryError) else Path(output).absolute().parent
        raise Usage(f"cannot write to {place}: {error.strerror}") from None


def show(result: Report, given: Mapping[str, Any], out: TextIO, brief: bool = False) -> None:
    """Print the result, or write it to --output; `brief` prints only its sentence."""
    if given["form"] == "text" and not given["output"]:
        from ncclcheck.report import text

        rendered = f"{printable(result.summary)}\n" if brief else text.render(result, color=out.isatty() and "NO_COLOR" not in os.environ)
    else:
        rendered = report.render(result, given["form"])
    if given["output"]:
        safe_files.write(Path(given["output"]), rendered.encode(), _FOR_OTHERS if given["form"] in _WITHOUT_EVIDENCE else 0o600)
        return
    with contextlib.suppress(BrokenPipeError):  # who closed the pipe has read enough
        out.write(rendered)
        out.flush()


def writable(folder: Path) -> Path:
    """A folder of this user in which files can be made; it is made if need be. Who else may write around it is said. Raises Usage, Full."""
    try:
        safe_files.folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            said = safe_files.exposed(folder) or safe_files.exposed(folder.absolute().parent)
    except safe_files.Refused as error:
        raise Usage(str(error)) from None
    except OSError as error:
        kind = Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else Usage
        raise kind(f"cannot write to {folder}: {error.strerror}") from None
    if said:
        print(f"ncclcheck: {said}", file=sys.stderr)
    return folder
