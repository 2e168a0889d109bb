"""The code cache: where translated blocks lie, shared by all harts at one address, and how they are found again.

The memfd is mapped twice, never writable and executable in one mapping: `CODE` executes, `CODE + ALIAS` writes.
A block is known by its physical and its virtual pc, so the code may hold the virtual one as a constant.  Blocks
are made and entered into the table under one lock; looking one up takes none.  When the cache is full it is emptied
as a whole (smp/quiesce.py).
"""

from mem.atomics import aload64, astore64, fetch_add64, memory_copy, memory_set
from mem.layout import Layout, layout, many, u32, u64
from mem.native import native, ref
from mem.pages import pages_differ
from mem.regions import CODE, CODE_COPIES, CODE_COPIES_BYTES, CODE_TABLE, HOST
from smp.code import Slot

BUCKETS = 1 << 18  # entries of the table at most; a power of two
CODE_PER_ENTRY = 512  # bytes of code for which the table has an entry: blocks are seldom smaller
PAGES = CODE_COPIES_BYTES >> 12  # code pages tracked; a power of two
FIRST_STEP = 1  # the first step slot is --engine check's
AGAIN = 1  # in place of a code address: there was no room, or what was known may be old; look once more
PAGE_WAYS = 4  # records that a page may have


@layout
class Block(Layout):
    """One translated block in the table."""

    ppc: u64  # physical pc; 0 in an empty entry
    vpc: u64
    code: u64  # host address that executes
    version: u64  # of the page's contents that it was made from


@layout
class CodePage(Layout):
    """A physical page that has translated code; what it held then lies at `CODE_COPIES`."""

    page: u64  # physical address; 0 when free
    version: u64  # of its contents; no two contents of any page have the same
    checked: u64  # the epoch in which the copy was last compared with memory


@layout
class Stub(Layout):
    """Code that goes behind a block: where it is jumped to from, and what it needs."""

    kind: u64
    site: u64  # end of the jump's displacement
    more: u64  # end of another jump that comes here, or 0
    back: u64  # where it returns to
    pc: u64
    info: u64
    segment: u64  # of the instruction
    before: u64  # instructions of the segment in front of it
    fp: u64  # the floating-point registers of the host are in use


MAX_STUBS = 256
MAX_SEGMENTS = 80


@layout
class Asm(Layout):
    """The translator's scratch, used under the lock."""

    out: u64  # executable address of the next byte
    pc: u64  # virtual pc of the instruction in hand
    text: u64  # where its bytes are read: in the copy of its page
    page: u64  # physical page of the block
    version: u64  # of the page
    first_pc: u64  # virtual pc of the block
    start: u64  # where its code begins
    count: u64  # instructions so far
    limit: u64  # of instructions
    segment: u64  # number of the segment in hand: what runs whenever its first instruction does
    begun: u64  # instructions before the segment
    site: u64  # behind the immediate that takes the segment's instructions off the quantum
    declined: u64  # a template leaves this instruction to the interpreter
    ended: u64  # a template ends the block
    missed: u64  # the jump taken when the access in hand misses the TLB
    fp_ready: u64  # the block has looked at `fp_inline`, and nothing has changed it since
    boxed: u64  # floating-point registers known to hold NaN-boxed singles, a bit each
    word: u64  # the instruction in hand
    number: u64  # its row
    stubs: u64
    length: u64  # bytes of the instruction in hand
    window_end: u64  # where, as `text`, the SC is that ends the constrained LR/SC sequence in hand
    window_lr: u64  # slot of its LR
    fused: u64  # its LR and SC are translated together
    enter: u64  # the fixed pieces
    exit: u64
    exit_link: u64
    leave: u64
    bare_exit: u64
    call_access: u64
    call_step: u64
    load_fp: u64
    call_system: list[u64] = many(4)
    call_admit: u64
    decoded: Slot
    inner: Slot  # an instruction that is looked ahead at
    stub: list[Stub] = many(MAX_STUBS)
    taken: list[u64] = many(MAX_SEGMENTS)  # instructions of each segment


@layout
class CodeTable(Layout):
    """One for all."""

    lock: u32
    emptying: u32  # 1 while the cache is emptied: nobody may look anything up
    used: u64  # bytes of code
    begin: u64  # where code begins, behind the fixed pieces
    end: u64
    steps_end: u64  # of the step slots
    bucket_mask: u64
    emptied: u64  # how often the cache was emptied
    epoch: u64  # counts fence.i on any hart
    blocks_made: u64
    instructions: u64  # in them
    translate_ns: u64  # time it took to make them
    slots_used: u64
    versions: u64  # the last given to a page's contents
    asm: Asm
    blocks: list[Block] = many(BUCKETS)
    pages: list[CodePage] = many(PAGES)


@native(inline=True)
def table() -> CodeTable:
    return CodeTable.at(CODE_TABLE)


@native
def next_epoch() -> int:
    """A fence.i: contents seen before it must be looked at again."""
    return fetch_add64(ref(table().epoch), 1) + 1


@native
def first_record(page: int) -> int:
    """Index of the first of the records that a page may have."""
    number = page >> 12
    return ((number ^ number >> 12) * PAGE_WAYS) & (PAGES - 1)


@native
def page_record(page: int) -> int:
    """Address of the page's record, or 0."""
    first = first_record(page)
    for way in range(PAGE_WAYS):
        at = ref(table().pages[first + way])
        if aload64(ref(CodePage.at(at).page)) == page:
            return at
    return 0


@native
def new_record(page: int) -> int:
    """Address of a record for a page that has none: a free one, or one taken from another page."""
    first = first_record(page)
    for way in range(PAGE_WAYS):
        at = ref(table().pages[first + way])
        if CodePage.at(at).page == 0:
            return at
    return ref(table().pages[first + table().versions % PAGE_WAYS])


@native
def copy_of(record: int) -> int:
    """Host address of the copy that belongs to a record."""
    return CODE_COPIES + (record - ref(table().pages)) // CodePage.sizeof() * 4096


@native
def text_of(ppc: int) -> int:
    """Host address, in the copy of its page, of an instruction.  Under the lock, when the page has a record."""
    return copy_of(page_record(ppc & ~0xFFF)) + (ppc & 0xFFF)


@native
def take_copy(at: int, page: int) -> None:
    """Start anew with the page's present contents.  Under the lock."""
    record = CodePage.at(at)
    t = table()
    epoch = aload64(ref(t.epoch))
    # Whoever compares the new copy with memory must not find the old version.
    astore64(ref(record.version), 0)
    astore64(ref(record.page), page)
    memory_copy(copy_of(at), HOST + page, 4096)
    t.versions += 1
    astore64(ref(record.version), t.versions)
    astore64(ref(record.checked), epoch)


@native
def version_of(page: int, need: int) -> int:
    """The version of the page's contents if they were compared in epoch `need` or later, else 0.  No lock.

    The record may be given to another page meanwhile: then the version is one that no block of this page has.
    """
    at = page_record(page)
    record = CodePage.at(at)
    if at == 0 or aload64(ref(record.checked)) < need:
        return 0
    return aload64(ref(record.version))


@native
def has_changed(page: int) -> int:
    """Whether a page with a record holds something else than its copy.  No lock.

    When it says no, `version_of` gives the version of what it holds, or 0: `take_copy` takes the old one away first.
    """
    at = page_record(page)
    return at != 0 and pages_differ(copy_of(at), HOST + page)


@native
def check_page(page: int, need: int) -> int:
    """The version of the page's contents, compared with memory if the last time was before `need`.  Under the lock."""
    at = page_record(page)
    if at == 0:
        at = new_record(page)
        take_copy(at, page)
    record = CodePage.at(at)
    if record.checked < need:
        epoch = aload64(ref(table().epoch))
        if pages_differ(copy_of(at), HOST + page):
            take_copy(at, page)
        else:
            astore64(ref(record.checked), epoch)
    return record.version


@native(inline=True)
def bucket(ppc: int, vpc: int) -> int:
    return ((ppc >> 1) ^ (ppc >> 13) * 0x9E37 ^ (vpc >> 12) * 0x85EB) & table().bucket_mask


WAYS = 4
ALARM_CHECK = 17  # bytes at the start of a block that look at the alarm


@native
def is_block(block: Block, ppc: int, vpc: int, version: int) -> int:
    """Whether the entry is of this block; the loads stay in their order."""
    if aload64(ref(block.ppc)) != ppc or aload64(ref(block.vpc)) != vpc:
        return 0
    return aload64(ref(block.version)) == version


@native
def lookup(ppc: int, vpc: int, version: int) -> int:
    """The code of a block made from this version of its page, or 0."""
    at = bucket(ppc, vpc)
    for way in range(WAYS):
        block = Block.at(ref(table().blocks[(at + way) & table().bucket_mask]))
        if is_block(block, ppc, vpc, version):
            # Another block may be put here meanwhile: the code counts if the entry is still the same behind it.
            code = aload64(ref(block.code))
            if is_block(block, ppc, vpc, version):
                return code
    return 0


@native
def is_stale(block: Block) -> int:
    """Whether the entry's block can't be found any more, since its page has another version or no record.

    Under the lock.
    """
    at = page_record(block.ppc & ~0xFFF)
    return at == 0 or CodePage.at(at).version != block.version


@native
def place_for(ppc: int, vpc: int) -> int:
    """The entry that a new block gets: its own old one, a free or a stale one, or else one of the ways in turn.

    A block that loses its entry is still run by whoever is linked to it or has it in a jump cache.
    """
    t = table()
    at = bucket(ppc, vpc)
    chosen = (at + t.blocks_made % WAYS) & t.bucket_mask
    for way in range(WAYS):
        entry = (at + way) & t.bucket_mask
        block = Block.at(ref(t.blocks[entry]))
        if block.ppc == ppc and block.vpc == vpc:
            return ref(t.blocks[entry])
        if block.ppc == 0 or is_stale(block):
            chosen = entry
    return ref(t.blocks[chosen])


@native
def enter_block(ppc: int, vpc: int, version: int, code: int) -> None:
    """Put a block into the table.  Under the lock.

    `ppc` is cleared first and set last; `lookup` looks at it before and after the code.
    """
    block = Block.at(place_for(ppc, vpc))
    astore64(ref(block.ppc), 0)
    astore64(ref(block.vpc), vpc)
    astore64(ref(block.code), code)
    astore64(ref(block.version), version)
    astore64(ref(block.ppc), ppc)


@native
def forget_all() -> None:
    """Empty the cache.  Under the lock, with no hart in translated code (smp/quiesce.py)."""
    t = table()
    memory_set(ref(t.blocks), 0, (t.bucket_mask + 1) * Block.sizeof())
    memory_set(ref(t.pages), 0, CodePage.sizeof() * PAGES)
    t.asm.out = t.begin
    t.used = t.begin - CODE
    t.slots_used = FIRST_STEP
    t.emptied += 1
