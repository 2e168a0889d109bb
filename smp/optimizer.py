"""The optimizer's process: loops that harts are busy with are compiled by LLVM and put into the code cache."""

import ctypes
import functools
import os
import time
from typing import Any, NoReturn

from llvmlite import binding as llvm

from mem.machine import machine
from mem.regions import HOT
from smp.hot import HotBlock, HotBlocks, take_request
from smp.loopcode import HostCode, LoopCode, compile_loop, is_known
from smp.loopfinder import PAGE, Page, entries, find_loop
from smp.loopinstall import copy_page, enter_loop, finish_install, leave_loop, leave_rarely, put_code, set_rare
from smp.process import depend_on
from smp.x86 import aim


def run_optimizer(supervisor: int, fd: int) -> NoReturn:
    """The main function of the forked process: `fd` is the eventfd that requests come by.  Runs until it is killed."""
    depend_on(supervisor)
    optimizer = Optimizer()
    while True:
        os.read(fd, 8)
        optimizer.take_requests()


class Optimizer:
    """Compiles what is asked for."""

    def __init__(self) -> None:
        self.target = position_independent_target()
        self.done: set[tuple[int, int, int]] = set()  # all blocks of the loops made: ppc, vpc, version

    def take_requests(self) -> None:
        hot, request = HotBlocks.at(HOT), HotBlock.ctype()
        while take_request(ctypes.addressof(request)):
            wanted = request.ppc, request.vpc, request.version
            began = time.monotonic_ns()
            if wanted not in self.done:
                hot.loops += self.optimize(*wanted)
            hot.compile_ns += time.monotonic_ns() - began

    def optimize(self, ppc: int, vpc: int, version: int) -> bool:
        """Compile and install the loop that holds this pc; whether there was one."""
        page = page_of(ppc & ~(PAGE - 1), vpc & ~(PAGE - 1), version)
        blocks = find_loop(page, vpc) if page else {}
        if not blocks:
            return False
        starts = entries(blocks, vpc)
        code = compile_loop(LoopCode(blocks, starts), self.target)
        if not code or not install(code, starts, ppc, vpc, version):
            return False
        self.done |= {(ppc - vpc + i.pc, i.pc, version) for block in blocks.values() for i in block.instructions}
        return True


@functools.lru_cache(maxsize=64)
def page_of(ppc: int, vpc: int, version: int) -> Page | None:
    """A page of this version; None when it has another by now."""
    data = ctypes.create_string_buffer(PAGE)
    if not copy_page(ppc, version, ctypes.addressof(data)):
        return None
    return Page(data.raw, vpc, machine().extensions, is_known)


def install(code: HostCode, starts: list[int], ppc: int, vpc: int, version: int) -> bool:
    """Put a loop into the cache: its function, the ways out, the blocks that enter it; False when it can't be."""
    source, ways = ctypes.create_string_buffer(code.text), {way for _, way in code.jumps if way} | set(code.rare)
    address, size = ctypes.addressof(source), len(code.text)
    function = put_code(address, size, len(starts) + len(ways), ppc & ~(PAGE - 1), version)
    if function == 0:
        return False
    places = {way: leave_loop(way.kind, way.not_run, ppc - vpc + way.pc, way.pc, version) for way in ways}
    rarely = leave_rarely(len(code.rare))
    for index, way in enumerate(code.rare):
        set_rare(rarely, index, places[way])
    for site, exit in code.jumps:
        aim(function + site, places[exit] if exit else rarely)
    for index, start in enumerate(starts):
        enter_loop(function, index, ppc - vpc + start, start, version)
    finish_install(ppc, vpc, function)
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
