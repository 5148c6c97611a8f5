"""Reads the logs of SGLang, and of TensorRT-LLM and LMDeploy where they differ from vLLM's: what was asked for, how far it came, who died.

Reads
    log a.log: [2026-03-04 02:05:29] server_args=ServerArgs(model_path='m', tp_size=16, dist_init_addr='10.9.0.1:5000', nnodes=2, node_rank=1)
    => setting name=tp_size value=16
    => setting name=node_rank value=1

Reads
    log a.log: [2026-03-04 02:05:33 TP3] Load weight begin. avail mem=78.61 GB
    => load-begun

Reads
    log a.log: [2026-03-04 02:06:33 TP3] Load weight end. elapsed=58.10 s, type=LlamaForCausalLM, dtype=torch.bfloat16
    => load-ended seconds=58.10

Reads
    log a.log: [2026-03-04 02:05:33 TP3] Init torch distributed ends. elapsed=4.02 s, mem usage=1.10 GB
    => joined-all

Reads
    log a.log: [2026-03-04 02:08:33] The server is fired up and ready to roll!
    => served

Reads
    log a.log: [2026-03-04 02:08:33] Gracefully exiting... remaining number of requests 0
    => ended

Reads
    log a.log: [2026-03-04 02:08:33 TP3] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)
    => engine-timeout call=Scheduler

Reads
    log a.log: [2026-03-04 02:08:33 TP3] Watchdog timeout (self.watchdog_last_time=17.2, self.watchdog_timeout=300)
    => engine-timeout

Reads
    log a.log: [2026-03-04 02:08:33] Health check failed. Server couldn't get a response from detokenizer for last 20 seconds.
    => engine-timeout

Reads
    log a.log: [2026-03-04 02:08:33 TP3] Scheduler hit an exception: Traceback (most recent call last):
    => engine-failed

Reads
    log a.log: [2026-03-04 02:08:33] Rank 0 scheduler is dead. Please check if there are relevant logs.
    log a.log: [2026-03-04 02:08:33] Exit code: -9
    => scheduler-died code=-9

Reads
    log a.log: [2026-03-04 02:08:33] Rank 1 scheduler died (exit code: -11)
    => scheduler-died code=-11
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_ARGUMENTS = ("tp_size", "pp_size", "dp_size", "nnodes", "node_rank", "dist_init_addr", "mem_fraction_static")


def _arguments(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """What the server was told about its size and its place, as settings."""
    for match in re.finditer(rf"\b(?P<name>{'|'.join(_ARGUMENTS)})(?:': |=)'?(?P<value>[\w.:-]+)", line.text):
        yield line.fact("setting", {"name": match["name"], "value": match["value"]})


def _died(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """The parent's word on a scheduler. Its code is no proof of a foreign kill: SGLang itself ends schedulers that hang or failed."""
    number = re.search(r"Rank (?P<local>\d+) scheduler", line.text)
    near = " ".join([line.text, *(other.text for _, other in zip(range(3), following, strict=False))])
    code = re.search(r"[Ee]xit code: (?P<code>-?\d+)", near)
    if number and code:
        yield line.fact("scheduler-died", {"local": int(number["local"]), "code": int(code["code"])})


READS = (
    Block(r"server_args=(?:ServerArgs\(|\{)", _arguments),
    Clue("load-begun", r"Load weight begin"),
    Clue("load-ended", r"Load weight end\.(?: elapsed=(?P<seconds>[\d.]+) s)?"),
    Clue("joined-all", r"Init torch distributed ends\. \w"),
    Clue("served", r"The server is fired up and ready to roll"),
    Clue("ended", r"Gracefully exiting\.\.\. remaining number of requests 0"),
    Clue("engine-timeout", r"\b(?P<call>\w{1,40}) watchdog timeout \(self\.watchdog_timeout="),
    Clue("engine-timeout", r"Watchdog timeout \(self\.watchdog_"),
    Clue("engine-timeout", r"Health check failed\. Server couldn't get a response|Hang detected on rank \d+ in PyExecutor"),
    Clue("engine-failed", r"(?:Scheduler|TpModelWorker|DetokenizerManager|TokenizerManager) hit an exception"),
    Block(r"Rank \d+ scheduler (?:is dead|died)", _died, mixed=True),
)
