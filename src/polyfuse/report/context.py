"""What made a report: versions, machine, command line."""

import os
import platform
import shlex
import sys
from importlib import metadata

import torch


def versions() -> dict[str, str]:
    """What computed the run."""
    names = ("polyfuse", "torch", "numpy", "pyarrow", "pillow", "tokenizers", "scikit-learn", "lightning-fabric")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor, cores and threads in a line."""
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'' if threads == 1 else 's'}"


def this_command() -> str:
    """The command line that runs now."""
    arguments = sys.argv[1:]
    return shlex.join(["polyfuse", *arguments]) if arguments else "polyfuse"
