"""Take two locks in the wrong order against another thread: both wait for ever, and so does every peer."""

from __future__ import annotations

import threading

EXPECT = "rank-stuck-in-python"
SAFE = True
STRIKES = "step"


def inject() -> None:
    """Never returns."""
    first, second, held = threading.Lock(), threading.Lock(), threading.Event()

    def other() -> None:
        with second:
            held.set()
            with first:
                pass

    with first:
        threading.Thread(target=other, daemon=True).start()
        held.wait()
        wait_for_the_other_lock(second)


def wait_for_the_other_lock(lock: threading.Lock) -> None:
    """The name that the victim's stack must show."""
    with lock:
        pass
