"""How fast logs are read, and in how much memory: a log of any size is made while it is read, and never stands on a disk.

python tests/bench/text.py --size 1GiB          (on one core; --pipe reads it as `ncclcheck triage` does, through a pipe by name)
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ncclcheck.evidence import heap, text
from ncclcheck.units import bytes_text, parse_bytes

RANKS = 64
SEED = 1


def lines(choose: random.Random) -> Iterator[str]:
    """What a job of 64 ranks and a vLLM server beside it write: mostly progress, access and NCCL INFO, sometimes a warning."""
    step = 0
    while True:
        step += 1
        clock = f"{step // 3600 % 24:02}:{step // 60 % 60:02}:{step % 60:02}"
        rank = choose.randrange(RANKS)
        host, pid = f"gpu-{rank // 8:02}", 4000 + rank
        for _ in range(6):
            loss, norm = choose.random() * 9, choose.random()
            yield f"[rank{rank}]: 2026-02-03 {clock},{choose.randrange(1000):03} INFO train.py:210 step {step} loss {loss:.4f} norm {norm:.3f}"
        for _ in range(6):
            port, took = choose.randrange(30000, 60000), choose.random()
            yield f'(APIServer pid={pid}) INFO:     10.1.{rank}.9:{port} - "POST /v1/chat/completions HTTP/1.1" 200 OK {took:.3f}'
        yield (
            f"(APIServer pid={pid}) INFO 02-03 {clock} [loggers.py:248] Engine 000: Avg prompt throughput: {choose.random() * 4000:.1f} tokens/s, "
            f"Avg generation throughput: {choose.random() * 900:.1f} tokens/s, Running: {choose.randrange(64)} reqs, Waiting: 0 reqs, "
            f"GPU KV cache usage: {choose.random() * 90:.1f}%, Prefix cache hit rate: 41.0%"
        )
        info, peer = f"{host}:{pid}:{pid + 80} [{rank % 8}] NCCL INFO", (rank + 1) % RANKS
        for channel in range(4):
            yield f"{info} Channel {channel:02}/0 : {rank}[{rank % 8}] -> {peer}[{peer % 8}] via P2P/CUMEM"
        yield f"{info} AllReduce: opCount {step:x} sendbuff 0x7f21 recvbuff 0x7f21 count 1048576 datatype 7 op 0 root 0"
        if choose.random() < 0.02:
            yield f"/usr/lib/python3.11/site-packages/torch/utils/checkpoint.py:{choose.randrange(900)}: UserWarning: use_reentrant should be passed"


def block(size: int = 16 << 20) -> bytes:
    """Some of these lines, at least this many bytes."""
    written, parts = 0, []
    for line in lines(random.Random(SEED)):
        parts.append(line)
        written += len(line) + 1
        if written > size:
            return "\n".join([*parts, ""]).encode()
    raise AssertionError


class Made:
    """A log of this many bytes, made of one block again and again."""

    def __init__(self, size: int) -> None:
        self._block, self._left, self._at = block(), size, 0

    def read(self, size: int, /) -> bytes:
        piece = self._block[self._at : self._at + min(size, self._left)]
        self._at = (self._at + len(piece)) % len(self._block)
        self._left -= len(piece)
        return piece


def main() -> None:
    """Print the rate and the largest resident memory, of this process or of the one that read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--pipe", action="store_true")
    given = parser.parse_args()
    made = Made(given.size)
    text.everything()
    start = time.perf_counter()
    if given.pipe:
        with tempfile.TemporaryDirectory() as folder:
            pipe = Path(folder, "log")
            os.mkfifo(pipe)
            writer = os.fork()
            if writer == 0:
                with open(pipe, "wb") as stream:
                    while piece := made.read(1 << 20):
                        stream.write(piece)
                os._exit(0)
            (reading,) = heap.read([str(pipe)])
            os.waitpid(writer, 0)
        facts = len(reading.facts)
    else:
        facts = sum(1 for _ in text.read(made, "log"))
    seconds = time.perf_counter() - start
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) << 10
    print(f"{bytes_text(given.size)} in {seconds:.1f} s: {given.size / seconds / 1e6:.0f} MB/s, {facts} facts, at most {bytes_text(most)} of memory")


if __name__ == "__main__":
    main()
