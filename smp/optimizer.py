"""The optimizer's process: loops that harts are busy with are compiled by LLVM and put into the code cache."""

import ctypes
import functools
import gc
import os
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from llvmlite import binding as llvm

from mem.regions import HOT
from smp.codecache import CodePage, page_record
from smp.hart import JUMP_ENTRIES
from smp.hot import HotBlock, HotBlocks, take_request
from smp.loopcode import HostCode, LoopCode, compile_loop, is_known
from smp.loopfinder import Blocks, entries, find_loop
from smp.loopguard import LoopPages
from smp.loopinstall import (
    WAY_ROOM,
    enter_loop,
    finish_install,
    leave_loop,
    leave_rarely,
    put_code,
    put_pages,
    set_rare,
)
from smp.looppages import PAGE, Program, find_page, page_of
from smp.process import depend_on
from smp.translate import BLOCK_ROOM
from smp.x86 import aim
from virtio.sandbox import close_all

SHARE = 20  # of the time, for loops that are compiled again
GARBAGE = 100_000  # objects more than after the last collection, at which there is the next: some 16 loops


def run_optimizer(supervisor: int, fd: int, surplus: set[int]) -> NoReturn:
    """The main function of the forked process: `fd` is the eventfd that requests come by.  Runs until it is killed.

    A loop leaves thousands of objects when it is compiled: the collector, left alone, takes a seventh of the time
    in which a hart waits for it.
    """
    depend_on(supervisor)
    close_all(surplus)
    gc.disable()
    optimizer = Optimizer()
    while True:
        os.read(fd, 8)
        optimizer.take_requests()
        if gc.get_count()[0] > GARBAGE:  # counted while the collector is off, too
            gc.collect()


@dataclass(frozen=True)
class Made:
    """A loop in the cache: its instructions outside of calls (ppc, version, vpc), and its pages with their versions."""

    instructions: frozenset[tuple[int, int, int]]
    pages: frozenset[tuple[int, int]]

    def is_current(self) -> bool:
        """Whether all pages have these versions still; none has when the cache was emptied."""
        return all(version_now(page) == version for page, version in self.pages)


@dataclass
class Spent:
    """What was done for one place of code."""

    began: int  # ns, when the first was asked for
    compile_ns: int = 0
    loops: int = 0


class Optimizer:
    """Compiles what is asked for.

    A loop is compiled again when a page of it has changed.  As code may change for ever, what that takes is limited to
    one part in `share` of the time.
    """

    def __init__(self, share: int = SHARE) -> None:
        self.target, self.share = position_independent_target(), share
        self.made: list[Made] = []
        self.spent: dict[tuple[int, int], Spent] = {}  # by ppc and vpc of the instructions
        self.keys = 0  # of loops of several pages: where the next one's are looked for

    def take_requests(self) -> None:
        hot, request = HotBlocks.at(HOT), HotBlock.ctype()
        while take_request(ctypes.addressof(request)):
            wanted = request.ppc, request.version, request.vpc
            began = time.monotonic_ns()
            spent = self.spent.setdefault((request.ppc, request.vpc), Spent(began))
            if not self.has(wanted) and self.may_have(spent, began):
                made = self.optimize(*wanted, request.satp)
                hot.loops += made
                hot.again += made and spent.loops > 0
                spent.loops += made
                spent.compile_ns += time.monotonic_ns() - began
            hot.compile_ns += time.monotonic_ns() - began

    def has(self, wanted: tuple[int, int, int]) -> bool:
        """Whether this instruction's loop is in the cache as it should be."""
        return any(wanted in made.instructions and made.is_current() for made in self.made)

    def may_have(self, spent: Spent, now: int) -> bool:
        """Whether this place has not had more than its share of the time."""
        return spent.compile_ns * self.share <= now - spent.began

    def optimize(self, ppc: int, version: int, vpc: int, satp: int) -> bool:
        """Compile and install the loop that holds this pc; whether there was one."""
        page = page_of(ppc & ~(PAGE - 1), vpc & ~(PAGE - 1), version, is_known)
        if not page:
            return False
        program = Program(page, functools.partial(find_page, satp, is_known))
        blocks = find_loop(program, vpc)
        if not blocks:
            return False
        starts = entries(blocks, vpc)
        code = compile_loop(LoopCode(blocks, starts), self.target)
        if not code or not install(code, starts, program, self.pages(program, blocks)):
            return False
        own = [block for block in blocks.values() if not block.place.calls]
        instructions = frozenset((*program.address(i.pc), i.pc) for block in own for i in block.instructions)
        bases = {i.pc & -PAGE for block in blocks.values() for i in block.instructions}
        # Old ones are never asked for again.
        self.made = [made for made in self.made if made.is_current()]
        self.made.append(Made(instructions, frozenset(program.address(base) for base in bases)))
        spent = self.spent.setdefault((ppc, vpc), Spent(time.monotonic_ns()))
        for address, _, pc in instructions:
            self.spent.setdefault((address, pc), spent)
        return True

    def pages(self, program: Program, blocks: Blocks) -> Any:
        """The record of the pages of a loop: keys that are entries of jump caches which none of its pcs has.

        Each is an odd pc of its page, so it goes from a jump cache with the page's jumps.
        """
        pcs = {i.pc for block in blocks.values() for i in block.instructions}
        record, taken = LoopPages.ctype(), {pc >> 1 & JUMP_ENTRIES - 1 for pc in pcs}
        bases = sorted({pc & -PAGE for pc in pcs})
        record.count = len(bases)
        for place, base in zip(record.page, bases, strict=False):
            while True:
                self.keys += 2
                place.key = base | self.keys % PAGE | 1
                if (slot := place.key >> 1 & JUMP_ENTRIES - 1) not in taken:
                    break
            taken.add(slot)
            page = program.pages[base]
            place.physical, place.version = page.physical, page.version
        return record


def version_now(page: int) -> int:
    """The version of a page of code; 0 when none is known."""
    record = page_record(page)
    return CodePage.at(record).version if record else 0


def install(code: HostCode, starts: list[int], program: Program, record: Any) -> bool:
    """Put a loop into the cache: its function, the ways out, the blocks that enter it; False when it can't be."""
    source, ways = ctypes.create_string_buffer(code.text), {way for _, way in code.jumps if way} | set(code.rare)
    room = (len(starts) + len(ways) + 1) * WAY_ROOM + (len(starts) * BLOCK_ROOM if record.count > 1 else 0)
    function = put_code(ctypes.addressof(source), len(code.text), room, ctypes.addressof(record))
    if function == 0:
        return False
    pages = put_pages(ctypes.addressof(record), function) if record.count > 1 else 0
    places = {way: leave_loop(way.kind, way.not_run, *program.address(way.pc), way.pc) for way in ways}
    rarely = leave_rarely(len(code.rare))
    for index, way in enumerate(code.rare):
        set_rare(rarely, index, places[way])
    for site, exit in code.jumps:
        aim(function + site, places[exit] if exit else rarely)
    for index, start in enumerate(starts):
        enter_loop(function, index, pages, *program.address(start), start)
    finish_install(starts[0], function)
    return True


def position_independent_target() -> Any:
    """LLVM's description of this host, for code that may lie anywhere."""
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=2,
        reloc="pic",
        codemodel="small",
    )
