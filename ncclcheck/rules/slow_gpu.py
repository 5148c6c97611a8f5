"""A GPU computes slower than its peers because it is throttled: heat, power, or a brake signal of the power supply.

Blames
    log node-a.txt:         HW Thermal Slowdown               : Active
    => node-a

Blames
    log node-a.txt:     HW Power Brake Slowdown           : Active
    => node-a

Spares
    log node-a.txt:         HW Thermal Slowdown               : Not Active
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

READS = (
    Statement(
        r"(?P<reason>HW Slowdown|HW Thermal Slowdown|HW Power Brake Slowdown|SW Thermal Slowdown)\s+: Active",
        "a GPU of {who} is throttled: {reason}",
        "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER,CLOCK   # compare with its peers; look at fans, air and power; nvidia-smi -rgc",
        0.65,
        "host",
    ),
)
