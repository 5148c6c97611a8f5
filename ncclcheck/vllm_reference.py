"""The answers of one rank without communication, from a process of its own: a process can hold one engine's groups."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from ncclcheck import interpreter, parent, units, vllm_answers, vllm_model
from ncclcheck.vllm_answers import Answers
from ncclcheck.vllm_layout import Layout

BOUND = 120  # seconds for the whole process


def answers(model: Path) -> Answers:
    """What the model in this folder, one that we made, answers with TP=1.

    Raises CalledProcessError or TimeoutExpired: then this check has failed, not the cluster.
    """
    ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with tempfile.TemporaryDirectory(prefix="ncclcheck-reference-") as folder:
        out = Path(folder) / "answers.json"
        subprocess.run(interpreter.module("ncclcheck.vllm_reference", str(model), str(out)), env=environment, check=True, timeout=BOUND)
        found: Answers = json.loads(out.read_text(encoding="utf-8"))
    return found


def free_bytes() -> int:
    """Bytes that this rank has free for weights: of its GPU's memory, or of the host's, shared with the ranks beside it."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def why_none(model: Path, free: int) -> str:
    """Why a model that we did not make has no such reference, where a rank has `free` bytes."""
    if (size := vllm_model.weights_bytes(model)) > free:
        return f"its weights ({units.bytes_text(size)}) do not fit into the {units.bytes_text(free)} that one rank has free"
    return "in its own dtype another order of summation gives other tokens, so one rank may differ without a fault"


def main(model: Path, out: Path) -> None:
    """What the process does. It ends with its parent, and in any case after its time."""
    parent.follow()
    signal.alarm(BOUND)
    import torch

    engine = vllm_answers.start(model, Layout(1), builtin=True, on_cpu=not torch.cuda.is_available())
    requests = vllm_answers.Requests(engine)
    for index, prompt in enumerate(vllm_answers.PROMPTS):
        requests.add(f"reference-{index}", prompt, vllm_answers.TOKENS)
    while requests.open:
        requests.step()
    out.write_text(json.dumps(requests.answers), encoding="utf-8")
    vllm_answers.stop(engine)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
