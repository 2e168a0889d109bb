"""Which loops are worth the optimizer's time: a sample of what runs whenever a hart's quantum is used up.

A block found running often enough is asked for, once for each version of its page; smp/optimizer.py takes the
requests.  Counting costs translated code nothing.
"""

from mem.atomics import spin_lock, spin_unlock
from mem.layout import Layout, layout, many, u32, u64
from mem.machine import Machine, kick
from mem.native import native, ref
from mem.regions import HOT, MACHINE

SAMPLES = 300  # of a quantum each: some 3 ms; the optimizer takes some 20 for a loop
INDEX_SHIFT = 64 - 9
BLOCKS = 1 << 9
REQUESTS = 64


@layout
class HotBlock(Layout):
    """A block that was running when a quantum ended."""

    ppc: u64
    vpc: u64
    version: u64
    satp: u64  # of the hart, 0 in M-mode: where the other pages of a loop lie
    samples: u64


@layout
class HotBlocks(Layout):
    """One for all."""

    lock: u32
    waiting: u32  # requests: the newest is the last
    loops: u32  # loops installed
    compile_ns: u64
    block: list[HotBlock] = many(BLOCKS)
    request: list[HotBlock] = many(REQUESTS)


@native
def note_busy(ppc: int, vpc: int, version: int, satp: int) -> None:
    """This block was running."""
    hot = HotBlocks.at(HOT)
    # By both addresses: code that several processes share is as many blocks, which should not evict each other.
    block = hot.block[(ppc ^ vpc << 20) * 0x9E37_79B9_7F4A_7C15 >> INDEX_SHIFT]
    if block.ppc != ppc or block.vpc != vpc or block.version != version:
        block.ppc = ppc
        block.vpc = vpc
        block.version = version
        block.samples = 0
    block.samples += 1
    if block.samples == SAMPLES:
        ask(ppc, vpc, version, satp)


@native
def ask(ppc: int, vpc: int, version: int, satp: int) -> None:
    """Ask for a loop; when too many are waiting, this one is forgotten."""
    hot = HotBlocks.at(HOT)
    spin_lock(ref(hot.lock))
    if hot.waiting < REQUESTS:
        request = hot.request[hot.waiting]
        request.ppc = ppc
        request.vpc = vpc
        request.version = version
        request.satp = satp
        hot.waiting = hot.waiting + 1
    spin_unlock(ref(hot.lock))
    kick(Machine.at(MACHINE).optimizer_fd)


@native
def take_request(to: int) -> int:
    """Take the newest request, what is busy now, into a HotBlock; 0 when there is none."""
    hot = HotBlocks.at(HOT)
    taken = HotBlock.at(to)
    spin_lock(ref(hot.lock))
    found = hot.waiting != 0
    if found:
        hot.waiting = hot.waiting - 1
        request = hot.request[hot.waiting]
        taken.ppc = request.ppc
        taken.vpc = request.vpc
        taken.version = request.version
        taken.satp = request.satp
    spin_unlock(ref(hot.lock))
    return found
