"""Whatever a peer with the right token sends, an end that hears it comes to a verdict that can be printed; `make soak` looks for longer."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import peers

EXAMPLES = 150  # of each end: seconds
SOAKED = 200.0  # seconds for each end in `make soak`


@settings(max_examples=EXAMPLES)
@given(peers.from_node)
def test_node_0_judges_and_prints_whatever_a_node_sends(messages: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        peers.hear(messages, Path(folder))


@settings(max_examples=EXAMPLES)
@given(peers.from_node0)
def test_a_node_obeys_or_refuses_or_prints_whatever_node_0_sends(data: bytes) -> None:
    peers.obey(data)


@settings(max_examples=EXAMPLES)
@given(peers.verdicts)
def test_a_node_refuses_or_prints_whatever_verdict_node_0_sends(data: bytes) -> None:
    peers.believe(data)


def hear(messages: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        peers.hear(messages, Path(folder))


@pytest.mark.soak
@pytest.mark.parametrize(
    ("said", "end"), [(peers.from_node, hear), (peers.from_node0, peers.obey), (peers.verdicts, peers.believe)], ids=["node 0", "node", "verdict"]
)
def test_an_end_comes_to_a_verdict_on_whatever_is_said_for_minutes(said: st.SearchStrategy[Any], end: Callable[[Any], None]) -> None:
    until = time.monotonic() + SOAKED
    for number in itertools.count():
        if time.monotonic() > until:
            break
        seed(number)(settings(max_examples=500, database=None, deadline=None, suppress_health_check=list(HealthCheck))(given(said)(end)))()
