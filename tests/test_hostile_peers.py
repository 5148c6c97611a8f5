"""Whatever a peer with the right token sends, an end that hears it comes to a verdict that can be printed; `make soak` looks for longer."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import peers

EXAMPLES = 150  # of each end: seconds


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
