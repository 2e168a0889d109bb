"""A machine without processes: regions, machine record and harts as a start makes them, run from Python.

A hart starts in M-mode at the beginning of RAM with floating point on.  A trap ends `Bare.run`; what it was stands in
mepc, mcause and mtval.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mem import regions
from mem.image import Boot
from mem.machine import machine
from mem.memmap import RAM_BASE
from mem.regions import Regions, map_fixed, unmap
from smp import engine
from smp.alarm import fence_i
from smp.boot import write_hart, write_machine
from smp.code import DECODED_BYTES
from smp.config import MachineConfig
from smp.cpu import CpuConfig, parse_cpu
from smp.hart import FS, Hart, hart_record
from smp.interpreter import run_quantum
from smp.looppages import page_of
from smp.row import ROWS
from smp.spaces import flush_translations
from smp.translate import prepare_cache
from smp.translated import run_translated
from smp.trap import update_view

RAM_BYTES = 16 << 20
LIMIT = 100_000  # instructions after which a test's program is taken to hang
TRANSLATED_QUANTUM = 1000  # a block does not begin with less left than it has
PMP_ALL = 0x1F  # NAPOT, RWX

Instruction = tuple[str, dict[str, int]] | int  # a row's name and fields, or the word itself


def i(name: str, **fields: int) -> Instruction:
    return name, fields


def word_of(instruction: Instruction) -> int:
    return instruction if isinstance(instruction, int) else ROWS[instruction[0]].encode(**instruction[1])


def encode(*instructions: Instruction) -> bytes:
    """Machine code."""
    words = [word_of(item) for item in instructions]
    return b"".join(word.to_bytes(4 if word & 3 == 3 else 2, "little") for word in words)


class Trapped(NamedTuple):
    """The trap that ended a run."""

    cause: int
    tval: int
    pc: int


class Bare:
    """The machine; `h` is its first hart."""

    def __init__(self, opened: Regions, config: MachineConfig) -> None:
        self.regions, self.config = opened, config
        self.ram = opened.ram()
        self.boot = Boot((), RAM_BASE, "M", 0)
        self.reset()

    @property
    def h(self) -> Hart:
        return self.hart(0)

    def hart(self, number: int) -> Hart:
        return hart_record(number)

    def reset(self) -> None:
        """All as after a start, but for RAM."""
        pages = self.config.ram // regions.PAGE
        ctypes.memset(regions.WATCHED, 0, pages)
        ctypes.memset(regions.SHARED, 0, regions.SHARED_BYTES)
        write_machine(self.config, self.boot, 0, 0, 0)
        for number in range(self.config.harts):
            ctypes.memset(ctypes.addressof(self.hart(number)), 0, Hart.sizeof())
            write_hart(self.config, self.boot, number)
            self.hart(number).mstatus |= FS
            self.pmp(self.hart(number), 0, PMP_ALL, (1 << 54) - 1)

    def extensions(self, cpu: str) -> None:
        """Be another processor (as in `-cpu`) from here on."""
        machine().extensions = parse_cpu(cpu).mask
        self.forget_code()

    def pmp(self, h: Hart, entry: int, config: int, address: int) -> None:
        """Set a PMP entry; `address` is what pmpaddr holds."""
        h.mmu.pmpcfg[entry], h.mmu.pmpaddr[entry] = config, address

    def enter(self, privilege: int, h: Hart | None = None) -> None:
        """Go on in this mode."""
        h = h or self.h
        h.privilege = privilege
        update_view(h)

    def put(self, address: int, *instructions: Instruction) -> int:
        """Write instructions to RAM; gives the address behind them."""
        return self.poke(address, encode(*instructions))

    def poke(self, address: int, data: bytes) -> int:
        """Write bytes to RAM; gives the address behind them."""
        at = address - RAM_BASE
        self.ram[at : at + len(data)] = data
        return address + len(data)

    def peek(self, address: int, size: int) -> bytes:
        return bytes(self.ram[address - RAM_BASE : address - RAM_BASE + size])

    def word(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.peek(address, size), "little")

    def put_word(self, address: int, value: int, size: int = 8) -> None:
        self.poke(address, value.to_bytes(size, "little"))

    def drop_translations(self) -> None:
        flush_translations(self.h)

    def forget_code(self) -> None:
        """No page of code is decoded any more."""
        ctypes.memset(ctypes.addressof(self.h.page_ppn), 0xFF, ctypes.sizeof(self.h.page_ppn))
        fence_i(self.h)

    def step(self, quantum: int = LIMIT) -> Trapped | None:
        """One quantum: ends at a trap, behind `quantum` instructions, or when an instruction asks for a look around."""
        h = self.h
        traps = h.traps
        # With -d int translated code, too, leaves at each trap.
        machine().log |= 1
        h.log_new = 0
        if not self.config.translates:
            run_quantum(h, quantum)
        elif not run_translated(h, max(quantum, TRANSLATED_QUANTUM)):
            run_quantum(h, 1)
        return Trapped(h.mcause, h.mtval, h.mepc) if h.traps != traps else None

    def run(self, pc: int = RAM_BASE, limit: int = LIMIT) -> Trapped:
        """Run from `pc` until a trap."""
        h = self.h
        h.pc = pc
        end = h.instret + limit
        while h.instret < end:
            trapped = self.step(limit)
            if trapped:
                return trapped
        raise AssertionError(f"no trap after {limit} instructions, pc {h.pc:#x}")

    def run_here(self, *instructions: Instruction, pc: int = RAM_BASE) -> Trapped:
        """Run these and an ebreak."""
        self.put(pc, *instructions, i("ebreak"))
        self.forget_code()
        return self.run(pc)


@contextmanager
def bare_machine(
    harts: int = 1, ram: int = RAM_BYTES, cpu: str = "rv64", runs: str = "interp", tb_size: int = 128 << 20
) -> Iterator[Bare]:
    """Open one in this process, which can hold only one; decoded code is mapped for this process alone.

    `runs` is the machine's --engine, `tb_size` the size of its code cache.
    """
    engine.load()
    config = MachineConfig(harts=harts, ram=ram, cpu=CpuConfig(parse_cpu(cpu).mask), engine=runs, tb_size=tb_size)
    opened = regions.open_regions(harts, ram)
    try:
        if config.translates:
            regions.open_code_cache(opened, config.tb_size)
            prepare_cache(config.tb_size)
        map_fixed(regions.DECODED, DECODED_BYTES)
        page_of.cache_clear()  # versions begin anew
        yield Bare(opened, config)
    finally:
        unmap(regions.DECODED, DECODED_BYTES)
        opened.close()
