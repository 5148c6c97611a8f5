"""The answers of one rank without communication, from a process of its own: a process can hold one engine's groups."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from ncclcheck import parent, vllm_answers
from ncclcheck.vllm_answers import Answers

BOUND = 120  # seconds for the whole process


def answers(model: Path) -> Answers:
    """What the model in this folder, one that we made, answers with TP=1.

    Raises CalledProcessError or TimeoutExpired: then this check has failed, not the cluster.
    """
    ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with tempfile.TemporaryDirectory(prefix="ncclcheck-reference-") as folder:
        out = Path(folder) / "answers.json"
        subprocess.run([sys.executable, "-m", "ncclcheck.vllm_reference", str(model), str(out)], env=environment, check=True, timeout=BOUND)
        found: Answers = json.loads(out.read_text(encoding="utf-8"))
    return found


def main(model: Path, out: Path) -> None:
    """What the process does. It ends with its parent, and in any case after its time."""
    parent.follow()
    signal.alarm(BOUND)
    import torch

    engine = vllm_answers.start(model, 1, builtin=True, on_cpu=not torch.cuda.is_available())
    step, tokens = vllm_answers.ask(engine, "reference")
    for _ in range(vllm_answers.TOKENS):
        step()
    out.write_text(json.dumps(list(tokens.values())), encoding="utf-8")
    vllm_answers.stop(engine)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
