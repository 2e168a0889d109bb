"""Whether a hart may enter a loop of several pages.

Blocks are entered by links inside their page and by jump caches, which forget a page when the guest changes where it
lies or what it holds: so a hart that has come to a block has its page as it was translated.  A loop that goes on in
other pages needs the same of those.  For each of them a hart's jump cache has an entry, at a pc that no instruction
has, once it was looked at; it is gone as soon as that page's blocks are.
"""

from mem.atomics import memory_copy, spin_lock, spin_unlock, xchg32
from mem.layout import Layout, layout, many, u64
from mem.native import native, ref
from mem.regions import CODE_TABLE
from mem.tlb import NO_FAULT, PAGE_MASK
from smp.codecache import CodePage, CodeTable, check_page, copy_of, page_record, version_of
from smp.hart import Hart
from smp.hot import count_anew
from smp.spaces import code_bank, note_jump
from smp.translated import GO_ON, physical_pc

MOST_PAGES = 6


@layout
class LoopPage(Layout):
    """A page of a loop's code."""

    key: u64  # the odd pc in it under which the loop is noted in jump caches
    physical: u64
    version: u64


@layout
class LoopPages(Layout):
    """All pages of a loop; it lies in front of the code that enters it."""

    count: u64
    function: u64
    page: list[LoopPage] = many(MOST_PAGES)


@native
def copy_page(page: int, version: int, to: int) -> int:
    """The page as it was when it got this version; 0 when it has another by now."""
    t = CodeTable.at(CODE_TABLE)
    spin_lock(ref(t.lock))
    at = page_record(page)
    same = at != 0 and CodePage.at(at).version == version
    if same:
        memory_copy(to, copy_of(at), 4096)
    spin_unlock(ref(t.lock))
    return same


@native
def has_version(page: int, version: int) -> int:
    """Whether a page still has this version.  Under the lock."""
    at = page_record(page)
    return at != 0 and CodePage.at(at).version == version


@native
def current_version(h: Hart, page: int) -> int:
    """The version of a page's contents as of this hart's last fence.i; 0 when another hart has the lock.

    It may not be waited for here, in the middle of translated code (smp/quiesce.py).
    """
    version = version_of(page, h.epoch)
    if version:
        return version
    lock = ref(CodeTable.at(CODE_TABLE).lock)
    if xchg32(lock, 1):
        return 0
    version = check_page(page, h.epoch)
    spin_unlock(lock)
    return version


THERE, ELSEWHERE, CHANGED = range(3)


@native
def find_out(h: Hart, at: int) -> int:
    """Whether this hart sees a page where the loop has it, and as it was."""
    page = LoopPage.at(at)
    h.pc = page.key & PAGE_MASK
    if physical_pc(h) != page.physical:
        return ELSEWHERE
    version = current_version(h, page.physical)
    if version == page.version:
        return THERE
    return CHANGED if version else ELSEWHERE


@native
def ask_anew(loop: LoopPages, pc: int) -> None:
    """A page of the loop has changed: let the optimizer be asked for the loop that is at this entry now."""
    for n in range(loop.count):
        page = loop.page[n]
        if page.key & PAGE_MASK == pc & PAGE_MASK:
            count_anew(page.physical | pc & 0xFFF, pc, page.version)


@native
def admit(h: Hart, pages: int, pc: int, info: int) -> int:
    """Look at all pages of a loop that is entered at `pc`, and note it in the jump cache if they are there.

    A page that is not mapped is no fault of the guest's: its instruction there has not been fetched.
    """
    loop = LoopPages.at(pages)
    kept = h.pc
    good = 1
    for n in range(loop.count):
        found = find_out(h, ref(loop.page[n])) if good else THERE
        good = good and found == THERE
        if found == CHANGED:
            ask_anew(loop, pc)
    if good:
        for n in range(loop.count):
            note_jump(h, code_bank(h, h.privilege), loop.page[n].key, loop.function)
    h.pc = kept
    h.mmu.cause = NO_FAULT
    h.loop_admitted = good
    return GO_ON
