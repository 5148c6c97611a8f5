"""Reads the headings between several logs in one text: what follows one is said by the rank and host that it names.

Reads
    log all.txt: ==> logs/gpu-a.rank0.log <==
    log all.txt: ===== gpu-b.rank1.log =====
    => section name=logs/gpu-a.rank0.log
    => section name=gpu-b.rank1.log
"""

from ncclcheck.evidence._reads import Clue

SECTION = "section"  # the kind of fact by which the scanner knows that somebody else speaks from here on

READS = (
    Clue(SECTION, r"^==> (?P<name>\S{1,300}) <==$"),  # head, tail
    Clue(SECTION, r"^=====* ?(?P<name>[\w./@:-]{2,300}) ?=====*$"),
)
