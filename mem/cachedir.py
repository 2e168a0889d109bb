"""The cache directory: compiled engines, guests, and Python's bytecode where it would be kept nowhere else.

Imports next to nothing, for it comes before everything else in a start.
"""

import os
import stat
import sys
from pathlib import Path


def cache_directory() -> Path:
    """`$HARTBEAT_CACHE`, else `hartbeat` in `$XDG_CACHE_HOME`, else in `~/.cache`; absolute."""
    if own := os.environ.get("HARTBEAT_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base).absolute() / "hartbeat"


def keep_bytecode() -> None:
    """Have Python keep the bytecode of what is imported from now on, if it does not yet: in the cache directory.

    Containers are often told to write no `__pycache__` (PYTHONDONTWRITEBYTECODE), and a package may lie where its
    user can't write. Each start would compile all sources again then, which takes as long as everything else in it.
    Bytecode is executed, so the directory must be its owner's alone; where it can't be had, nothing is kept.
    """
    beside = os.path.dirname(os.path.abspath(__file__))
    if sys.pycache_prefix is not None or not (sys.dont_write_bytecode or not os.access(beside, os.W_OK)):
        return
    place = cache_directory() / "bytecode"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.stat()
    except OSError:
        return
    if found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022:
        sys.pycache_prefix = str(place)
        sys.dont_write_bytecode = False
