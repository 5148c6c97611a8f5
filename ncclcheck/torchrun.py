"""torchrun, made to die with the agent that started it: `python -m ncclcheck.torchrun ARGS...`."""

import os
import sys

from ncclcheck import fault, open_files, parent, registry

if __name__ == "__main__":
    open_files.as_given()
    parent.follow(int(os.environ["NCCLCHECK_PARENT"]))
    os.environ["NCCLCHECK_PARENT"] = str(os.getpid())  # of the ranks
    if (planted := fault.given(os.environ)) and planted.strikes == "launcher":
        registry.load("faults", planted.name).launcher(sys.argv[1:])
    from torch.distributed.run import main

    main(sys.argv[1:])
