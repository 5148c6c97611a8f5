"""torchrun, made to die with the agent that started it: `python -m ncclcheck.torchrun ARGS...`."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["NCCLCHECK_AGENT"]):
        sys.exit("ncclcheck: the agent left before torchrun came up")

    from torch.distributed.run import main

    main(sys.argv[1:])
