"""The shared regions: what lies where on the host.

Every region has one fixed host address in every process, so that a pointer, a TLB entry or a line of compiled
code means the same thing everywhere.  Physical address `pa` of guest RAM lies at `HOST + pa`.  Regions are
memfds, mapped once by the supervisor before it forks; they vanish with the last process.
"""

import ctypes
import mmap
import os
from dataclasses import dataclass

from mem import memmap

MAX_HARTS = 128
IO_PROCESSES = 8  # at most; number 0 is the one that has the UART
PAGE = 4096

# The table: host addresses.  Each record type says in its own file what lies there.
SHARED = 0x0F00_0000_0000
MACHINE = SHARED  # mem/machine.py: configuration the harts read, exit state
MAILBOXES = SHARED + 0x1_0000  # mem/mailbox.py, one a hart
SLEEPERS = SHARED + 0x1_8000  # mem/mailbox.py
CLINT = SHARED + 0x2_0000  # mem/clint.py
PLIC = SHARED + 0x3_0000  # mem/plic.py
UART = SHARED + 0x4_0000  # mem/uart.py
WINDOWS = SHARED + 0x8_0000  # mem/window.py: virtio register files and the requests to the I/O process
RESERVATIONS = SHARED + 0x10_0000  # mem/reservation.py
LOG_LINES = SHARED + 0x18_0000  # mem/log.py: a line buffer a hart
BLOCK_RECORD = LOG_LINES + 0x1_0000  # smp/blocklog.py: the record that is being written
HOT = SHARED + 0x1C_0000  # smp/hot.py: blocks that harts are busy with
SHARED_BYTES = 0x20_0000
WATCHED = 0x0F08_0000_0000  # mem/reservation.py: a byte for every page of RAM
HARTS = 0x0F10_0000_0000  # smp/hart.py: a record every HART_STRIDE
HART_STRIDE = 0x20_0000
DECODED = 0x0F80_0000_0000  # decoded instructions, private to each hart process
CODE_TABLE = 0x0F90_0000_0000  # smp/codecache.py: which blocks are translated
CODE_TABLE_BYTES = 0x200_0000
STEPS = 0x0F98_0000_0000  # decoded instructions that translated code has the interpreter execute
STEPS_BYTES = 0x2000_0000  # at most: of what the code has ...
STEPS_SHARE = 2  # ... half
CODE_COPIES = 0x0F9C_0000_0000  # what pages of translated code held
CODE_COPIES_BYTES = 0x400_0000
CHECK = 0x0F9E_0000_0000  # smp/check.py: what is foretold of the hart, private memory of its process
CHECK_BYTES = 0x40_0000
CODE = 0x0FA0_0000_0000  # translated code, executable here ...
CODE_ALIAS = 0x10_0000_0000  # ... and writable this far above
CODE_BYTES = 0x4000_0000  # at most
HOST = 0x1000_0000_0000  # guest physical address 0

MAP_FIXED_NOREPLACE = 0x100000
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class RegionError(Exception):
    """The host refused a region; the text says which and what to do."""


READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC


def map_fixed(address: int, size: int, fd: int = -1, protection: int = READ_WRITE) -> None:
    """Map `size` bytes of the file (or private zeroes) at exactly this host address."""
    flags = (mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) | MAP_FIXED_NOREPLACE
    flags |= getattr(mmap, "MAP_NORESERVE", 0x4000)
    got = _libc.mmap(address, size, protection, flags, fd, 0)
    if got != address:
        reason = os.strerror(ctypes.get_errno())
        raise RegionError(f"can't map {size >> 20} MiB at {address:#x}: {reason}; is a machine open in this process?")


def unmap(address: int, size: int) -> None:
    """Undo map_fixed."""
    _libc.munmap(address, size)


def hide_harts() -> None:
    """Take away from this process what harts alone use: their records, and the code that they run."""
    unmap(HARTS, MAX_HARTS * HART_STRIDE)
    for address, size in (
        (CODE_TABLE, CODE_TABLE_BYTES),
        (STEPS, STEPS_BYTES),
        (CODE_COPIES, CODE_COPIES_BYTES),
        (CODE, CODE_BYTES),
        (CODE + CODE_ALIAS, CODE_BYTES),
    ):
        unmap(address, size)


@dataclass
class Regions:
    """The mapped regions of one machine; `close` unmaps them in this process."""

    ram_bytes: int
    harts: int
    mapped: list[tuple[int, int]]
    ram_fd: int

    def close(self) -> None:
        for address, size in self.mapped:
            unmap(address, size)
        self.mapped = []
        if self.ram_fd >= 0:
            os.close(self.ram_fd)
            self.ram_fd = -1

    def ram(self) -> memoryview:
        """Guest RAM as writable bytes; index 0 is physical address 0x80000000."""
        array = (ctypes.c_uint8 * self.ram_bytes).from_address(HOST + memmap.RAM_BASE)
        return memoryview(array).cast("B")


def _shared(name: str, address: int, size: int, mapped: list[tuple[int, int]]) -> int:
    """A memfd of this size, mapped; sealed against shrinking and growing."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    fd = os.memfd_create(f"hartbeat-{name}", flags)
    try:
        os.ftruncate(fd, size)
        import fcntl

        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        map_fixed(address, size, fd)
        mapped.append((address, size))
    except OSError as error:
        os.close(fd)
        raise RegionError(f"no {size >> 20} MiB of shared memory for {name}: {error.strerror}") from error
    return fd


def open_code_cache(regions: Regions, code_bytes: int, for_perf: bool = False) -> None:
    """Map the translator's regions too; the code is writable in one mapping and executable in the other."""
    os.close(_shared("table", CODE_TABLE, CODE_TABLE_BYTES, regions.mapped))
    os.close(_shared("steps", STEPS, code_bytes // STEPS_SHARE, regions.mapped))
    os.close(_shared("copies", CODE_COPIES, CODE_COPIES_BYTES, regions.mapped))
    if for_perf:
        _map_code_for_perf(regions, code_bytes)
        return
    fd = _shared("code", CODE + CODE_ALIAS, code_bytes, regions.mapped)
    try:
        map_fixed(CODE, code_bytes, fd, READ_EXECUTE)
        regions.mapped.append((CODE, code_bytes))
    finally:
        os.close(fd)


def _map_code_for_perf(regions: Regions, code_bytes: int) -> None:
    """The code as shared memory without a file: perf takes what a memfd holds for that file's and asks no map."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    alias = CODE + CODE_ALIAS
    got = _libc.mmap(alias, code_bytes, READ_WRITE, flags, -1, 0)
    # mremap(2): of a shared mapping an old size of 0 makes a second one.
    if got != alias or _libc.mremap(alias, 0, code_bytes, MREMAP_FIXED | MREMAP_MAYMOVE, CODE) != CODE:
        raise RegionError(f"no {code_bytes >> 20} MiB of shared memory for code: {os.strerror(ctypes.get_errno())}")
    regions.mapped += [(alias, code_bytes), (CODE, code_bytes)]
    if _libc.mprotect(CODE, code_bytes, READ_EXECUTE):
        raise RegionError(f"the host forbids executable memory: {os.strerror(ctypes.get_errno())}; use --engine interp")


def open_regions(harts: int, ram_bytes: int) -> Regions:
    """Map the regions of a machine in this process, all zero; call before forking.

    harts: 1 to MAX_HARTS; ram_bytes: a multiple of 4096.
    """
    mapped: list[tuple[int, int]] = []
    try:
        os.close(_shared("shared", SHARED, SHARED_BYTES, mapped))
        os.close(_shared("harts", HARTS, harts * HART_STRIDE, mapped))
        os.close(_shared("watched", WATCHED, max(ram_bytes // PAGE, PAGE), mapped))
        ram_fd = _shared("ram", HOST + memmap.RAM_BASE, ram_bytes, mapped)
    except RegionError:
        for address, size in mapped:
            unmap(address, size)
        raise
    return Regions(ram_bytes, harts, mapped, ram_fd)
