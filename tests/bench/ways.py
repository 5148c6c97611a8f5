"""How long it takes to try the way between every two of so many emulated nodes: `python tests/bench/ways.py [NODES...]`, 2, 8 and 64 if not said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]


def main(counts: list[int]) -> None:
    """One line for each number of nodes."""
    for count in counts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            script = f'exec {sys.executable} {TESTS}/agents.py "$NODE_RANK" "$NNODES" 10.201.0.1 29600 {folder}'
            command = [sys.executable, "-m", "ncclcheck.emulate", str(count), "--", "sh", "-c", script]
            environ = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
            done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
        facts = json.loads(done.stdout)
        (tried,) = (fact["fields"] for fact in facts if fact["kind"] == "tried")
        answers = Counter(fact["fields"]["answer"] for fact in facts if fact["kind"] == "way")
        looked = sum(1 for fact in facts if fact["fields"].get("looks"))
        told = (
            f"{tried['tried']} of {tried['of']} ordered pairs in {tried['seconds']} s ({time.monotonic() - began:.1f} s with the start of all agents)"
        )
        print(f"{count} nodes: {told}: {dict(answers)}, {looked} looked at again as slow", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [2, 8, 64])
