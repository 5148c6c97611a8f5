"""Progress on a terminal: permanent lines, and one line below them that is rewritten in place."""

from __future__ import annotations

import os
from typing import TextIO

from ncclcheck.safe_text import printable

_CLEAR = "\r\x1b[K"  # back to the start of the line, erase to its end


class Live:
    """Progress on `stream` (stderr). A stream that was closed under it stops it and never raises."""

    def __init__(self, stream: TextIO, enabled: bool) -> None:
        """`enabled` allows the live line; it is drawn only if the stream is a terminal."""
        self._stream: TextIO | None = stream
        self._live = enabled and stream.isatty()
        self._shown = ""

    def say(self, text: str) -> None:
        """One permanent line, above the live line if there is one."""
        if self._shown:
            self._write(f"{_CLEAR}{printable(text)}\n{self._shown}")
        else:
            self._write(f"{printable(text)}\n")

    def show(self, text: str) -> None:
        """Replace the live line, cut to the terminal's width; "" removes it. Does nothing where there is none."""
        line = printable(text)[: self._columns() - 1] if self._live else ""
        if line != self._shown:
            self._shown = line
            self._write(_CLEAR + line)

    def close(self) -> None:
        """Remove the live line; what was said stays."""
        self.show("")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80 if self._stream else 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more: a closed pipe is not an error
            self._stream = None
