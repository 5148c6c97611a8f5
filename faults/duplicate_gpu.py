"""Give two ranks the same GPU."""

from __future__ import annotations

from collections.abc import Mapping

EXPECT = "duplicate-gpu"
SAFE = True
STRIKES = "start"
NEEDS = ("gpu", "two-ranks-on-a-node")
BLAMES = "pair"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """LOCAL_RANK stays: it is what CUDA_VISIBLE_DEVICES leads to that is the other's."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    mine = int(environ["LOCAL_RANK"])
    visible = visible if len(visible) > mine else [str(index) for index in range(int(environ["LOCAL_WORLD_SIZE"]))]
    visible[mine], visible[mine - 1] = visible[mine - 1], visible[mine]
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible)}
