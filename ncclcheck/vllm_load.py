"""Puts a server under load with vLLM's own `vllm bench serve`: its code, in one process for all cells, since importing it takes long.

`python -m ncclcheck.vllm_load` says `ready`, then runs one benchmark for each line of its input (the arguments of `vllm bench serve` as a
list of JSON), and answers `done`, or `failed WHY`. What vLLM prints goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from ncclcheck import parent

LONGEST = 300  # characters of a reason


def main() -> int:
    """0 at the end of the input."""
    parent.follow(int(os.environ["NCCLCHECK_CLIENT_OF"]) if "NCCLCHECK_CLIENT_OF" in os.environ else None)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from vllm.benchmarks import serve

    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(f"{_run(serve, json.loads(line))}\n")
        answers.flush()
    return 0


def _run(serve: Any, arguments: Sequence[str]) -> str:
    """One benchmark. Whatever is raised in it is its answer: the next one may do better."""
    try:
        parser = _parser()
        serve.add_cli_args(parser)
        serve.main(parser.parse_args(arguments))
    except SystemExit as error:  # argparse does not know an option
        return f"failed vllm bench serve exited with {error.code}"
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return f"failed {said[:LONGEST]}"
    finally:
        sys.stdout.flush()
    return "done"


def _parser() -> argparse.ArgumentParser:
    """vLLM's own: it takes options with dashes and underscores."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = FlexibleArgumentParser()
    return parser


if __name__ == "__main__":
    sys.exit(main())
