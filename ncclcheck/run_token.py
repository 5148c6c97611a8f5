"""Where a run's token, the secret of its nodes, comes from, and the key that is made of it."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ncclcheck.model import Report
from ncclcheck.printing import Usage

INSECURE = "insecure: anybody on the network could take part"
AT_HOME = ".config/ncclcheck/token"  # in the home folder, where nothing else is said
MAKE_ONE = "export NCCLCHECK_TOKEN=$(ncclcheck token)"
_BEGINS = "ncct_"  # of the tokens that are made here: whoever finds one knows what it is
_PUBLIC = "ncclcheck"  # stands for a token with --insecure
_LEAST, _MOST = 16, 4096  # characters


@dataclass(frozen=True, slots=True)
class Token:
    """A run's secret, and where it comes from, in words."""

    text: str = field(repr=False)
    source: str

    @property
    def insecure(self) -> bool:
        """Whether it is the one that everybody knows."""
        return self.text == _PUBLIC


@functools.lru_cache(maxsize=8)
def derive_key(token: str) -> bytes:
    """The 32 bytes that a token stands for. It takes 0.1 s and 32 MiB, so that a captured message gives few guesses a second."""
    salt = b"ncclcheck control plane 2"  # constant: the nodes have nothing in common but the token
    return hashlib.scrypt(token.encode(), salt=salt, n=2**15, r=8, p=1, maxmem=2**26, dklen=32)


def fresh() -> Token:
    """A new one, of 128 random bits."""
    return Token(_BEGINS + secrets.token_hex(16), "this run")


def given(options: Mapping[str, Any]) -> Token | None:
    """What the command line or the environment says, else what this user has at home; None where there is none. Raises Usage."""
    if options["insecure"]:
        if os.geteuid() == 0:
            raise Usage(f"--insecure is refused as root: anybody on the network could command this node; better: {MAKE_ONE}")
        return Token(_PUBLIC, "--insecure")
    if options["token"]:
        return _checked(options["token"].strip(), "--token or NCCLCHECK_TOKEN")
    if options["token_file"]:
        try:
            return _read(Path(options["token_file"]))
        except OSError as error:
            raise Usage(f"cannot read the token file {options['token_file']}: {error.strerror}") from None
    return at_home()


def at_home() -> Token | None:
    """The token that this user keeps; None where there is none. Raises Usage for one that others know or may have written."""
    path = home_file()
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}") from None


def make_at_home() -> bool:
    """Make this user's token where there is none; whether it was made here. Of several that do so at once one does, and all find it. Raises Usage."""
    path = home_file()
    if path.exists():
        return False
    unfinished = path.with_name(f".token-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(f"{fresh().text}\n")
                file.flush()
                os.fsync(descriptor)
            os.link(unfinished, path)  # whole, or not at all; and never over another's
        finally:
            os.unlink(unfinished)
    except FileExistsError:
        return False
    except OSError as error:
        raise Usage(f"cannot keep a token in {path}: {error.strerror}; set NCCLCHECK_TOKEN on every node to the same secret") from None
    return True


def own() -> Token:
    """The token that this user keeps, made if need be. Raises Usage."""
    make_at_home()
    if not (token := at_home()):
        raise Usage(f"cannot read {home_file()}: it was removed")
    return token


def home_file() -> Path:
    """Where this user's token is kept."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base, "ncclcheck/token") if os.path.isabs(base) else Path(os.path.expanduser("~"), AT_HOME)


def marked(report: Report) -> Report:
    """The report of a run without a secret, which says so."""
    report.summary += f"; {INSECURE}"
    report.run["insecure"] = INSECURE
    return report


def _read(path: Path) -> Token:
    """The token in a file. Raises OSError, and Usage for one that others know or may have written."""
    # Links are followed, since Kubernetes mounts secrets as such: what counts is what was opened.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        if reason := _unsafe(file.fileno()):
            raise Usage(f"the token file {path} {reason}")
        return _checked(file.read(_MOST + 1).decode(errors="replace").strip(), str(path))


def _unsafe(descriptor: int) -> str:
    """Why an opened file is no place for a secret; empty where it is one."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return "is no plain file"
    if found.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user (uid {found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others: chmod 600 it, and make a new token"
    mounted = os.fstatvfs(descriptor).f_flag & os.ST_RDONLY  # as Kubernetes mounts a secret, readable by all in the pod
    if found.st_mode & (stat.S_IRGRP | stat.S_IROTH) and not mounted:
        return "can be read by others: chmod 600 it, and make a new token"
    return ""


def _checked(text: str, source: str) -> Token:
    """Raises Usage for what can be guessed, or is no token at all."""
    if not _LEAST <= len(text) <= _MOST or not text.isprintable() or " " in text:
        what = f"has {len(text)} characters" if text.isprintable() and " " not in text else "is not one word"
        raise Usage(f"the token of {source} {what}; it must be a secret of {_LEAST} or more, in one word: {MAKE_ONE}")
    return Token(text, source)
