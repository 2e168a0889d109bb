"""Address translation and PMP against a slow model written from the privileged manual."""

import random

import pytest
from bare import Bare
from hypothesis import given, settings
from hypothesis import strategies as st
from paging_model import (
    EXECUTE,
    PAGE,
    READ,
    TABLES,
    TARGETS,
    WRITE,
    A,
    D,
    Model,
    N,
    R,
    V,
    W,
    build,
    compare_twice,
    fill,
    leaf_of,
    native_outcome,
    outcome,
    random_model,
    random_pmp,
    spoil,
)

from mem.machine import machine
from mem.mmu import cached, pmp_allows, read_slow, translate, write_slow
from mem.tlb import (
    NO_FAULT,
)
from smp.cpu import EXT_PMP, parse_cpu
from smp.hart import MACHINE, SUPERVISOR, USER


@pytest.fixture(autouse=True)
def fresh(bare: Bare) -> None:
    fill(bare)


@settings(max_examples=200)
@given(seed=st.integers(0, 1 << 48))
def test_walks_end_where_the_manual_says(bare: Bare, seed: int) -> None:
    source = random.Random(seed)
    model = random_model(source, bare)
    va = build(source, model)
    model.pmp = random_pmp(source)
    model.install(bare.h)
    mmu = bare.h.mmu
    access = source.choice((READ, WRITE, EXECUTE))
    compare_twice(bare, model, lambda: model.translate(va, access), lambda: translate(mmu, va, access, model.privilege))
    size = source.choice((1, 2, 4, 8))
    inside = va & ~(PAGE - 1) | min(va % PAGE, PAGE - size)
    value = source.getrandbits(8 * size)
    compare_twice(bare, model, lambda: model.read(inside, size), lambda: read_slow(mmu, inside, size))
    compare_twice(bare, model, lambda: model.write(inside, size, value) or 0,
                  lambda: write_slow(mmu, inside, size, value) and 0)  # fmt: skip
    for kind in (READ, WRITE):
        found = cached(mmu, inside, 1, kind)
        assert found == NO_FAULT or found == outcome(lambda kind=kind: model.locate(inside, 1, kind))


@pytest.mark.parametrize("extension", ["svnapot", "svpbmt", "svadu"])
def test_page_table_bits_of_an_extension_that_is_off_are_reserved(bare: Bare, extension: str) -> None:
    machine().extensions = parse_cpu(f"rv64,{extension}=off").mask
    bits = {"svnapot": N, "svpbmt": 1 << 61, "svadu": 0}[extension]
    model = Model(bare, 8 << 60 | TABLES >> 12, menvcfg=0)
    for level in range(3):
        bare.put_word(TABLES + (2 - level) * PAGE, (TABLES + (3 - level) * PAGE) >> 12 << 10 | V)
    bare.put_word(
        TABLES + 2 * PAGE, (TARGETS >> 12 | (8 if bits == N else 0)) << 10 | V | R | W | (A | D if bits else 0)
    )
    at = TABLES + 2 * PAGE
    bare.put_word(at, bare.word(at) | bits)
    model.install(bare.h)
    assert outcome(lambda: model.read(0, 8)) == (13, 0)
    assert native_outcome(bare.h, lambda: read_slow(bare.h.mmu, 0, 8)) == (13, 0)


@settings(max_examples=100)
@given(seed=st.integers(0, 1 << 48))
def test_accesses_across_two_pages(bare: Bare, seed: int) -> None:
    """Two pages that lie apart, either of which may fault: its part is named, and nothing is stored."""
    source = random.Random(seed)
    model = random_model(source, bare)
    model.satp = 8 << 60 | TABLES >> 12
    bare.put_word(TABLES, (TABLES + PAGE) >> 12 << 10 | V)
    bare.put_word(TABLES + PAGE, (TABLES + 2 * PAGE) >> 12 << 10 | V)
    for page in range(2):
        pte = leaf_of(source, TARGETS + source.randrange(64) * PAGE, 0) & ~N
        bare.put_word(TABLES + 2 * PAGE + 8 * page, spoil(source, pte) if source.random() < 0.3 else pte | R | W)
    model.install(bare.h)
    size = source.choice((2, 4, 8))
    va = PAGE - source.randrange(1, size)
    value = source.getrandbits(8 * size)
    mmu = bare.h.mmu
    compare_twice(bare, model, lambda: model.read(va, size), lambda: read_slow(mmu, va, size))
    compare_twice(bare, model, lambda: model.write(va, size, value) or 0,
                  lambda: write_slow(mmu, va, size, value) and 0)  # fmt: skip


@settings(max_examples=400)
@given(seed=st.integers(0, 1 << 48))
def test_pmp_decides_by_its_lowest_match(bare: Bare, seed: int) -> None:
    source = random.Random(seed)
    model = Model(bare)
    model.pmp = random_pmp(source)
    model.install(bare.h)
    borders = [edge for entry in range(16) for edge in model.range(entry)]
    for _ in range(20):
        size = source.choice((1, 2, 4, 8, 64))
        pa = max(0, source.choice(borders) % (1 << 56) + source.randrange(-size - 2, size + 2))
        access, privilege = source.choice((READ, WRITE, EXECUTE)), source.choice((USER, SUPERVISOR, MACHINE))
        expected = model.permitted(pa, size, access, privilege)
        assert bool(pmp_allows(bare.h.mmu, pa, size, access, privilege)) == expected, f"{pa:#x} {size} {model.pmp}"


def test_pmp_ranges_of_all_memory_and_of_nothing(bare: Bare) -> None:
    mmu = bare.h.mmu
    for address in ((1 << 54) - 1, (1 << 53) - 1, (1 << 52) - 1):
        bare.pmp(bare.h, 0, 0x19, address)
        assert pmp_allows(mmu, 0x8000_0000, 8, READ, USER) == 1
        assert pmp_allows(mmu, 0x8000_0000, 8, WRITE, USER) == 0
    bare.pmp(bare.h, 0, 0x0F, 0)  # TOR up to 0
    bare.pmp(bare.h, 1, 0x0F, 0)
    assert pmp_allows(mmu, 0, 4, READ, USER) == 0
    assert pmp_allows(mmu, 0, 4, READ, MACHINE) == 1
    machine().extensions &= ~EXT_PMP
    assert pmp_allows(mmu, 0, 4, READ, USER) == 1
