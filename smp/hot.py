"""Which loops are worth the optimizer's time: a sample of what runs whenever a hart's quantum is used up.

A block found running often enough is asked for, once for each version of its page; smp/optimizer.py takes the
requests.  Counting costs translated code nothing.
"""

from mem.atomics import spin_lock, spin_unlock
from mem.layout import Layout, layout, many, u32, u64
from mem.machine import Machine, kick
from mem.native import native, ref
from mem.regions import HOT, MACHINE

SAMPLES = 1000  # of a quantum each: about the time that the optimizer takes for a loop
INDEX_SHIFT = 64 - 9
BLOCKS = 1 << 9
REQUESTS = 64


@layout
class HotBlock(Layout):
    """A block that was running when a quantum ended."""

    ppc: u64
    vpc: u64
    version: u64
    samples: u64


@layout
class HotBlocks(Layout):
    """One for all."""

    lock: u32
    asked: u32  # requests made; request n lies in n % REQUESTS
    taken: u32  # requests that the optimizer has looked at
    loops: u32  # loops installed
    compile_ns: u64
    block: list[HotBlock] = many(BLOCKS)
    request: list[HotBlock] = many(REQUESTS)


@native
def note_busy(ppc: int, vpc: int, version: int) -> None:
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
        ask(ppc, vpc, version)


@native
def ask(ppc: int, vpc: int, version: int) -> None:
    """Ask for a loop; when too many are waiting, this one is forgotten."""
    hot = HotBlocks.at(HOT)
    spin_lock(ref(hot.lock))
    if hot.asked - hot.taken < REQUESTS:
        request = hot.request[hot.asked & (REQUESTS - 1)]
        request.ppc = ppc
        request.vpc = vpc
        request.version = version
        hot.asked = hot.asked + 1
    spin_unlock(ref(hot.lock))
    kick(Machine.at(MACHINE).optimizer_fd)
