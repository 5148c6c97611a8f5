"""torchrun, made to die with the agent that started it: `python -m ncclcheck.torchrun ARGS...`."""

import os
import sys

from ncclcheck import parent

if __name__ == "__main__":
    parent.follow(int(os.environ["NCCLCHECK_PARENT"]))
    os.environ["NCCLCHECK_PARENT"] = str(os.getpid())  # of the ranks
    from torch.distributed.run import main

    main(sys.argv[1:])
