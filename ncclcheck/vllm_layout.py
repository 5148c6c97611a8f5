"""How the ranks of one vLLM engine share the model: tensor parallelism inside a stage, pipeline stages one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT = 4  # bytes of a float32, in which the probe's own model is computed


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine computed: so many input tokens, so many sampled, by a model of this shape in float32."""

    hidden: int
    layers: int
    vocabulary: int
    tokens: int
    sampled: int


@dataclass(frozen=True, slots=True)
class Layout:
    """TP x PP ranks. As vLLM numbers them, the `tp` ranks of a stage are adjacent, and so the same place in the next stage is `tp` further."""

    tp: int
    pp: int = 1

    def __str__(self) -> str:
        """`TP=2`, or `TP=2 PP=2`."""
        return f"TP={self.tp}" + (f" PP={self.pp}" if self.pp > 1 else "")

    @property
    def ranks(self) -> int:
        """As many as it takes."""
        return self.tp * self.pp

    def place(self, rank: int) -> tuple[int, int]:
        """A rank's place in its stage, and the stage."""
        return rank % self.tp, rank // self.tp

    def sent_bytes(self, nodes: Sequence[str], node: str, work: Work) -> int:
        """Bytes that must leave `node` for other nodes for this work; `nodes` names the node of each rank.

        A lower bound by any algorithm: an all-reduce of S bytes over several nodes makes each of them send at least S, a broadcast its root's.
        A stage all-reduces the hidden state after each attention and each MLP of its layers (divided evenly over the stages), the first one
        after the embedding, too. To the next stage go the hidden state and the residual; each rank sends its share to the same place there.
        With "external_launcher" each place of the last stage broadcasts the logits to the same place of the others: all ranks sample. What
        tensor parallelism gathers for them is not counted: vLLM has two ways.
        """
        state, logits = work.tokens * work.hidden * FLOAT, work.sampled * work.vocabulary * FLOAT
        total = 0
        for stage in range(self.pp):
            members = range(stage * self.tp, (stage + 1) * self.tp)
            where = {nodes[rank] for rank in members}
            if node in where and len(where) > 1:
                total += (2 * work.layers // self.pp + (stage == 0)) * state
            if stage + 1 < self.pp:
                total += sum(2 * state // self.tp for rank in members if nodes[rank] == node != nodes[rank + self.tp])
        last = range(self.ranks - self.tp, self.ranks)
        return total + sum(logits for rank in last if nodes[rank] == node and {nodes[other] for other in range(rank, -1, -self.tp)} != {node})


def choose(ranks: int, tp: int | None = None, pp: int | None = None) -> Layout:
    """The layout of so many ranks: TP over all of them where nothing is asked for; of one number the other follows.

    Raises ValueError, naming the layouts that there are, where TP x PP is not `ranks`.
    """
    found = Layout(tp or (max(1, ranks // pp) if pp else ranks), pp or (max(1, ranks // tp) if tp else 1))
    if found.ranks == ranks:
        return found
    said = " ".join(f"--{name} {value}" for name, value in (("tp", tp), ("pp", pp)) if value)
    there = ", ".join(f"--tp {size} --pp {ranks // size}" for size in range(1, ranks + 1) if ranks % size == 0)
    raise ValueError(f"{said} does not make {ranks} ranks; TP times PP must: {there}")
