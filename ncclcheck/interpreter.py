"""Where Python looks for modules, here and in what is started from here: not in the current folder, where anybody's may lie."""

# This must be the first of ours to run, and itself import nothing that is not loaded in every Python: no __future__ either.
import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder that holds ncclcheck


def module(name: str, *words: str) -> list[str]:
    """The command that runs an installed module, as `python -m` does."""
    return [sys.executable, "-P", "-m", name, *words]


def leave_current_folder() -> None:
    """Import nothing more from there, nor in any Python that comes of this process, whoever starts it (torchrun, vLLM, Ray).

    A checkout that ncclcheck itself was started in is no such folder: it is found by all of them.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed under us: nothing lies there
        here = ""
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):  # as python -m and python -c put it there
        if here != _ROOT:
            del sys.path[0]
        else:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    os.environ["PYTHONSAFEPATH"] = "1"
