"""A small machine's memory between two pages that nobody may touch."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from fake_driver import RAM_BYTES, machine_memory
from forked_io import io_memory

from mem import regions
from mem.memmap import RAM_BASE
from mem.regions import map_fixed, unmap
from virtio.queue import Ram

CANARY = b"\xa5" * 4096
PAGES = (regions.HOST + RAM_BASE - 4096, regions.HOST + RAM_BASE + RAM_BYTES)  # before and after guest RAM


@contextmanager
def guarded_memory(io: bool = False) -> Iterator[Ram]:
    """With `io`, with all that the I/O process looks at."""
    with io_memory() if io else machine_memory() as ram:
        for page in PAGES:
            map_fixed(page, 4096)
            ctypes.memmove(page, CANARY, 4096)
        try:
            yield ram
        finally:
            for page in PAGES:
                unmap(page, 4096)


def check_guards() -> None:
    """Both pages are as they were."""
    for page in PAGES:
        assert ctypes.string_at(page, 4096) == CANARY, f"a device wrote to {page:#x}, beside guest RAM"
