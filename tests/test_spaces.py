"""What an address space takes over from another: what is global in the upper half, and nothing else."""

from collections.abc import Callable, Iterator

import pytest
from bare import Bare, bare_machine, i
from paging_model import CODE, PAGE, READ, TABLES, TARGETS, WRITE, A, D, G, Model, R, U, V, W, X, fill, slot_address

from mem.mmu import cached, read_slow, write_slow
from mem.tlb import ASID_SHIFT, NO_FAULT, flush_all, flush_writes, second_level, spaces_with
from mem.word import MASK64
from smp.alarm import fence_i
from smp.code import enter
from smp.csr import write_satp
from smp.hart import JUMP_ENTRIES, JUMP_LOG, MACHINE, SUPERVISOR, USER, Hart
from smp.host import default_engine
from smp.spaces import flush_bank_jumps, flush_page_jumps, flush_spaces, note_jump
from smp.translated import physical_pc
from smp.trap import update_view

UPPER = MASK64 & -1 << 38
LOWER = 1 << 30
ROOTS = (TABLES, TABLES + 8 * PAGE)
SUPERVISORS = V | R | W | X | A | D


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    """With the translator where the host can run it, for it too keeps what it knows by space."""
    with bare_machine(runs=default_engine()) as made:
        yield made


@pytest.fixture
def model(bare: Bare) -> Model:
    fill(bare)
    return Model(bare, satp(1))


def satp(asid: int, mode: int = 8) -> int:
    """Each ASID has a root of its own."""
    return mode << 60 | asid << ASID_SHIFT | ROOTS[asid - 1] >> 12


def put(bare: Bare, asid: int, target: int, flags: int = 0, above: int = 0) -> None:
    """The page UPPER, and the same one as LOWER, of an address space, for supervisor unless `flags` say U.

    above: flags of what leads to it.
    """
    root = ROOTS[asid - 1]
    for index in (256, LOWER >> 30):
        bare.put_word(root + 8 * index, (root + PAGE) >> 12 << 10 | V | above)
    bare.put_word(root + PAGE, (root + 2 * PAGE) >> 12 << 10 | V)
    bare.put_word(root + 2 * PAGE, (TARGETS >> 12) + target << 10 | SUPERVISORS | flags)


def load(h: Hart, va: int) -> int:
    """The page that a load finds: from the first level, or as the slow path does."""
    found = cached(h.mmu, va, 8, READ)
    if found == NO_FAULT:
        read_slow(h.mmu, va, 8)
        found = cached(h.mmu, va, 8, READ)
    return (found - TARGETS) // PAGE


def store(h: Hart, va: int) -> int:
    found = cached(h.mmu, va, 8, WRITE)
    if found == NO_FAULT:
        write_slow(h.mmu, va, 8, 1)
        found = cached(h.mmu, va, 8, WRITE)
    return (found - TARGETS) // PAGE


def decode(h: Hart, va: int) -> int:
    h.pc = va
    slot = enter(h)
    assert slot
    return (slot_address(h, slot) - TARGETS) // PAGE


def translate(h: Hart, va: int) -> int:
    h.pc = va
    return (physical_pc(h) - TARGETS) // PAGE


ACCESSES = (load, store, decode, translate)[: 4 if default_engine() == "jit" else 3]


def look(bare: Bare, model: Model, asid: int, with_sum: bool = False, mode: int = 8) -> Hart:
    """The hart, in S-mode in this address space."""
    model.satp, model.privilege, model.sum = satp(asid, mode), SUPERVISOR, with_sum
    write_satp(bare.h, model.satp)
    model.install_mode(bare.h)
    bare.h.privilege = SUPERVISOR
    update_view(bare.h)
    return bare.h


def fence(bare: Bare, rs1: int, rs2: int) -> None:
    """An sfence.vma, in M-mode."""
    bare.h.privilege = MACHINE
    update_view(bare.h)
    bare.run_here(i("sfence.vma", rs1=rs1, rs2=rs2), pc=CODE)


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("with_sum", [False, True])
@pytest.mark.parametrize("where", ["leaf", "above"])
def test_a_new_space_has_what_is_global(
    bare: Bare, model: Model, access: Callable[[Hart, int], int], with_sum: bool, where: str
) -> None:
    for asid in (1, 2):
        put(bare, asid, 5, G if where == "leaf" else 0, G if where == "above" else 0)
    assert access(look(bare, model, 1, with_sum), UPPER) == 5
    h = look(bare, model, 2, with_sum)
    walks = h.mmu.walks
    assert access(h, UPPER) == 5 and h.mmu.walks == walks
    assert access(h, LOWER) == 5 and h.mmu.walks == walks + 1


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("with_sum", [False, True])
@pytest.mark.parametrize("va, flags", [(UPPER, 0), (LOWER, 0), (LOWER, G)])
def test_it_has_nothing_else(
    bare: Bare, model: Model, access: Callable[[Hart, int], int], with_sum: bool, va: int, flags: int
) -> None:
    for asid in (1, 2):
        put(bare, asid, asid, flags)
    assert access(look(bare, model, 1, with_sum), va) == 1
    assert access(look(bare, model, 2, with_sum), va) == 2
    assert access(look(bare, model, 1, with_sum), va) == 1


def test_one_page_that_is_not_global_stays_behind_with_those_that_are(bare: Bare, model: Model) -> None:
    for asid in (1, 2):
        put(bare, asid, 5, G)
        bare.put_word(ROOTS[asid - 1] + 2 * PAGE + 8, (TARGETS >> 12) + asid << 10 | SUPERVISORS)
    for asid in (1, 2, 1):
        h = look(bare, model, asid)
        assert (load(h, UPPER), load(h, UPPER + PAGE), translate(h, UPPER), translate(h, UPPER + PAGE)) == (5, asid) * 2


@pytest.mark.parametrize("access", (load, store))
def test_users_pages_of_the_upper_half_are_no_kernels(
    bare: Bare, model: Model, access: Callable[[Hart, int], int]
) -> None:
    """Through SUM they can be in supervisor's view."""
    for asid in (1, 2):
        put(bare, asid, asid, U)
    for asid in (1, 2):
        assert access(look(bare, model, asid, with_sum=True), UPPER) == asid
        model.privilege = USER
        model.install_mode(bare.h)
        assert access(bare.h, UPPER) == asid


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("rs1, rs2", [(0, 0), (6, 0)])
@pytest.mark.parametrize("current", [1, 2])
def test_a_fence_of_all_spaces_takes_global_pages_from_each(
    bare: Bare, model: Model, access: Callable[[Hart, int], int], rs1: int, rs2: int, current: int
) -> None:
    for asid in (1, 2):
        put(bare, asid, 5, G)
        access(look(bare, model, asid), UPPER)
    for asid in (1, 2):
        put(bare, asid, 6, G)
    look(bare, model, current)
    bare.h.x[6] = UPPER
    fence(bare, rs1, rs2)
    for asid in (current, 3 - current):
        assert access(look(bare, model, asid), UPPER) == 6


@pytest.mark.parametrize("access", ACCESSES)
def test_a_fence_of_one_space_leaves_what_is_global_and_takes_the_rest(
    bare: Bare, model: Model, access: Callable[[Hart, int], int]
) -> None:
    put(bare, 1, 5, G)
    h = look(bare, model, 1)
    assert access(h, LOWER) == access(h, UPPER) == 5
    flush_spaces(h, spaces_with(h.mmu, 1))  # what an sfence.vma does, but for the code that the instruction lies in
    walks = h.mmu.walks
    assert access(h, UPPER) == 5 and h.mmu.walks == walks
    assert access(h, LOWER) == 5 and h.mmu.walks == walks + 1


@pytest.mark.parametrize("access", ACCESSES)
def test_a_fence_of_one_space_takes_an_upper_page_that_is_its_own(
    bare: Bare, model: Model, access: Callable[[Hart, int], int]
) -> None:
    put(bare, 1, 5)
    h = look(bare, model, 1)
    assert access(h, UPPER) == 5
    put(bare, 1, 6)
    h.x[7] = 1
    fence(bare, 0, 7)
    assert access(look(bare, model, 1), UPPER) == 6


@pytest.mark.parametrize("access", ACCESSES)
def test_another_mode_has_other_global_pages(bare: Bare, model: Model, access: Callable[[Hart, int], int]) -> None:
    """-1 << 38 is canonical for Sv48 too, whose table at the same root leads elsewhere."""
    put(bare, 1, 5, G)
    top = ROOTS[1]
    steps = [top + 8 * 511, top + PAGE + 8 * 256, top + 2 * PAGE]
    for number, at in enumerate(steps):
        bare.put_word(at, (top + (number + 1) * PAGE) >> 12 << 10 | V)
    bare.put_word(top + 3 * PAGE, (TARGETS >> 12) + 6 << 10 | SUPERVISORS | G)
    for asid, mode, page in ((1, 8, 5), (2, 9, 6), (1, 8, 5)):
        assert access(look(bare, model, asid, mode=mode), UPPER) == page


# The second level


def forget_first_level(h: Hart) -> None:
    for view in h.mmu.views:
        for bank in (view.read, view.write):
            for entry in bank.entries:
                entry.tag = MASK64


def test_the_second_level_has_a_global_page_once_for_all(bare: Bare, model: Model) -> None:
    for asid in (1, 2):
        put(bare, asid, 5, G)
    load(look(bare, model, 1), UPPER)
    for asid in (1, 2):
        for with_sum in (False, True):
            h = look(bare, model, asid, with_sum)
            forget_first_level(h)
            assert second_level(h.mmu, UPPER, READ) == TARGETS + 5 * PAGE
            assert second_level(h.mmu, UPPER, WRITE) == NO_FAULT
    model.privilege = USER
    model.install_mode(h)
    assert second_level(h.mmu, UPPER, READ) == NO_FAULT


@pytest.mark.parametrize("flush, left", [(flush_all, (False, False)), (flush_writes, (True, False))])
def test_a_flush_takes_it_too(bare: Bare, model: Model, flush: Callable[..., int], left: tuple[bool, bool]) -> None:
    put(bare, 1, 5, G)
    h = look(bare, model, 1)
    load(h, UPPER)
    store(h, UPPER)
    flush(h.mmu)
    assert tuple(second_level(h.mmu, UPPER, access) != NO_FAULT for access in (READ, WRITE)) == left


# Jump caches


def supervisors_bank(h: Hart) -> int:
    return int(h.mmu.space) * 2 + 1


def jump(h: Hart, bank: int, pc: int) -> int:
    """The code that a jump cache has, or 0."""
    entry = h.jump_banks[bank * JUMP_ENTRIES + (pc >> 1 & JUMP_ENTRIES - 1)]
    return int(entry.code) if entry.pc == pc else 0


def test_jumps_of_the_upper_half_go_along(bare: Bare, model: Model) -> None:
    put(bare, 1, 5, G)
    h = look(bare, model, 1)
    pcs = [UPPER + 2, LOWER + 4]
    for pc in pcs:
        translate(h, pc)
        note_jump(h, supervisors_bank(h), pc, pc + 1)
    h = look(bare, model, 2)
    assert [jump(h, supervisors_bank(h), pc) for pc in pcs] == [UPPER + 3, 0]
    flush_spaces(h, spaces_with(h.mmu, 2))
    assert [jump(h, supervisors_bank(h), pc) for pc in pcs] == [UPPER + 3, 0]


@pytest.mark.parametrize("count", [1, JUMP_LOG, JUMP_LOG + 1, JUMP_ENTRIES])
def test_a_jump_cache_is_emptied_whatever_it_has(bare: Bare, model: Model, count: int) -> None:
    h = look(bare, model, 1)
    bank = supervisors_bank(h)
    flush_bank_jumps(h, bank)
    for _ in range(2):
        pcs = [UPPER + 2 * (n * 37 % JUMP_ENTRIES) for n in range(count)]
        for pc in pcs:
            note_jump(h, bank, pc, 1)
        assert all(jump(h, bank, pc) for pc in pcs)
        fence_i(h)
        assert not any(jump(h, bank, pc) for pc in pcs)


def test_a_page_takes_its_jumps_with_it(bare: Bare, model: Model) -> None:
    h = look(bare, model, 1)
    bank = supervisors_bank(h)
    for va in (UPPER, LOWER + 5 * PAGE):
        for pc in (va, va + PAGE - 2, va + PAGE, va - 2):
            note_jump(h, bank, pc, 1)
        flush_page_jumps(h, bank, va + 0x123)
        assert [jump(h, bank, pc) for pc in (va, va + PAGE - 2, va + PAGE, va - 2)] == [0, 0, 1, 1]


@pytest.mark.parametrize("access", [load, store])
def test_a_global_page_of_the_users_is_for_supervisor_with_sum_only(
    bare: Bare, model: Model, access: Callable[[Hart, int], int]
) -> None:
    put(bare, 1, 5, G | U)
    assert access(look(bare, model, 1, with_sum=True), UPPER) == 5
    h = look(bare, model, 1)
    access(h, UPPER)
    assert h.mmu.cause == (13 if access is load else 15)
