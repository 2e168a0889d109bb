"""The optimizer's process: loops that harts are busy with are compiled by LLVM and put into the code cache."""

import ctypes
import functools
import os
import time
from typing import Any, NoReturn

from llvmlite import binding as llvm

from mem.regions import HOT
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


def run_optimizer(supervisor: int, fd: int, surplus: set[int]) -> NoReturn:
    """The main function of the forked process: `fd` is the eventfd that requests come by.  Runs until it is killed."""
    depend_on(supervisor)
    close_all(surplus)
    optimizer = Optimizer()
    while True:
        os.read(fd, 8)
        optimizer.take_requests()


class Optimizer:
    """Compiles what is asked for."""

    def __init__(self) -> None:
        self.target = position_independent_target()
        self.done: set[tuple[int, int, int]] = set()  # all instructions of the loops made: ppc, version, vpc
        self.keys = 0  # of loops of several pages: where the next one's are looked for

    def take_requests(self) -> None:
        hot, request = HotBlocks.at(HOT), HotBlock.ctype()
        while take_request(ctypes.addressof(request)):
            wanted = request.ppc, request.version, request.vpc
            began = time.monotonic_ns()
            if wanted not in self.done:
                hot.loops += self.optimize(*wanted, request.satp)
            hot.compile_ns += time.monotonic_ns() - began

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
        self.done |= {(*program.address(i.pc), i.pc) for block in own for i in block.instructions}
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
