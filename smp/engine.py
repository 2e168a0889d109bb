"""The engine of a machine: every module with compiled code, in one unit."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mem import engine
from mem.native import Unit

# Every module that declares natives; a native outside this list is not compiled.
MODULES = (
    "mem.atomics",
    "mem.mailbox",
    "mem.machine",
    "smp.loop",
    "smp.translate",
    "smp.loopinstall",
    "mem.clock",
    "mem.pause",
    "mem.clint",
    "mem.plic",
    "mem.uart",
    "mem.rtc",
    "mem.finisher",
    "mem.htif",
    "mem.bus",
    "virtio.split",
    "virtio.packed",
    "virtio.checksum",
    "virtio.merge",
)


def sources() -> list[Path]:
    """All source files that decide what the engine is."""
    root = Path(__file__).resolve().parent.parent
    compiled = [root / "virtio" / name for name in ("ring.py", "split.py", "packed.py", "checksum.py", "merge.py")]
    return sorted([*compiled, *(p for package in ("smp", "mem") for p in (root / package).rglob("*.py"))])


def load(progress: Callable[[str], None] = lambda text: None) -> Any:
    """Bind every native, compiling the engine when the cache has none of this version (tens of seconds)."""
    for name in MODULES:
        importlib.import_module(name)
    return engine.load("engine", sources(), _build, progress)


def functions() -> Iterator[tuple[int, int, str]]:
    """Host address, bytes and name of each compiled function, once they are loaded."""
    return engine.functions("engine")


def _build(unit: Unit) -> None:
    pass
