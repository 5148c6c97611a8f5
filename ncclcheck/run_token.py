"""A run's token: the secret that all agents of a run share."""

from __future__ import annotations

import functools
import hashlib

_CONTEXT = b"ncclcheck control plane 2"  # the same for all runs: agents agree on a key before they speak
_N, _R, _P = 2**15, 8, 1  # 32 MiB and some 0.1 s for each guess


@functools.lru_cache(maxsize=4)
def derive_key(token: str) -> bytes:
    """The 32 bytes that a token stands for. Costly, so that a weak token cannot be guessed from what was overheard."""
    return hashlib.scrypt(token.encode(), salt=_CONTEXT, n=_N, r=_R, p=_P, maxmem=2**27, dklen=32)
