"""A link is slower than its kind: a PCIe slot or cable that came up with fewer lanes or at a lower rate.

Blames
    log a.log: Mar  3 10:00:00 node-a kernel: mlx5_core 0000:5e:00.0: 31.504 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x4 link at
    => node-a

Blames
    log a.log: LnkSta: Speed 8GT/s (downgraded), Width x16
    => -

Spares
    log a.log: LnkSta: Speed 16GT/s, Width x16
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

REMEDY = (
    "lspci -vv | grep -E 'LnkCap:|LnkSta:'   # compare with a healthy node (idle GPUs lower their rate by themselves: look under load); reseat the "
    "card or cable; nvidia-smi topo -m; ibstat | grep Rate; mlxlink -d mlx5_0"
)

READS = (
    Statement(
        r"(?P<bandwidth>[\d.]+ Gb/s) available PCIe bandwidth, limited by (?P<link>.*?) link at",
        "a card of {who} has only {link} ({bandwidth})",
        REMEDY,
        0.6,
        "host",
    ),
    Statement(r"LnkSta:.{0,20}(?P<speed>[\d.]+GT/s).{0,20}downgraded", "a PCIe link is slower than it could be ({speed})", REMEDY, 0.5, "nobody"),
)
