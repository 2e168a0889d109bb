"""Which loops are worth the optimizer's time: a sample of what runs whenever a hart's quantum is used up.

A block found running often enough is asked for, and again whenever it was found twice as often: there may have been no
room or time for its loop.  When the loop has become old, counting begins anew.  smp/optimizer.py takes the requests.
Counting costs translated code nothing.
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
    next: u64  # samples at which it is asked for


@layout
class HotBlocks(Layout):
    """One for all."""

    lock: u32
    waiting: u32  # requests: the newest is the last
    loops: u32  # loops installed
    again: u32  # of these, in a place where there was one before
    compile_ns: u64
    block: list[HotBlock] = many(BLOCKS)
    request: list[HotBlock] = many(REQUESTS)


@native(inline=True)
def entry_of(ppc: int, vpc: int) -> HotBlock:
    """Where the samples of a block are counted, or of another that has the place.

    By both addresses: code that several processes share is as many blocks, which should not evict each other.
    """
    return HotBlocks.at(HOT).block[(ppc ^ vpc << 20) * 0x9E37_79B9_7F4A_7C15 >> INDEX_SHIFT]


@native
def note_busy(ppc: int, vpc: int, version: int, satp: int) -> None:
    """This block was running."""
    block = entry_of(ppc, vpc)
    if block.ppc != ppc or block.vpc != vpc or block.version != version:
        block.ppc = ppc
        block.vpc = vpc
        block.version = version
        block.samples = 0
        block.next = SAMPLES
    block.samples += 1
    if block.samples >= block.next:
        block.next = 2 * block.next
        ask(ppc, vpc, version, satp)


@native
def count_anew(ppc: int, vpc: int, version: int) -> None:
    """The loop that begins here has become old: if it was asked for, it may be again."""
    block = entry_of(ppc, vpc)
    if block.ppc == ppc and block.vpc == vpc and block.version == version and block.next > SAMPLES:
        block.samples = 0
        block.next = SAMPLES


@native
def is_waiting(ppc: int, vpc: int, version: int) -> int:
    """Whether a block is asked for already.  Under the lock."""
    hot = HotBlocks.at(HOT)
    for n in range(hot.waiting):
        request = hot.request[n]
        if request.ppc == ppc and request.vpc == vpc and request.version == version:
            return 1
    return 0


@native
def ask(ppc: int, vpc: int, version: int, satp: int) -> None:
    """Ask for a loop; when too many are waiting, this request is forgotten."""
    hot = HotBlocks.at(HOT)
    spin_lock(ref(hot.lock))
    if hot.waiting < REQUESTS and not is_waiting(ppc, vpc, version):
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
