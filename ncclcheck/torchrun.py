"""torchrun, made to die with the agent that started it: `python -m ncclcheck.torchrun ARGS...`."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["NCCLCHECK_PARENT"]):
        sys.exit("ncclcheck: the agent left before torchrun came up")

    os.environ["NCCLCHECK_PARENT"] = str(os.getpid())  # of the ranks
    from torch.distributed.run import main

    main(sys.argv[1:])
