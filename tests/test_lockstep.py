"""The third witness: translated code against the living definition, on the same kind of random programs."""

import random

import pytest
from bare import Bare
from lockstep import candidates, compare, make

from mem.regions import CODE_TABLE
from smp.codecache import CodeTable
from smp.hart import MACHINE, USER
from smp.rows import ALL_EXTENSIONS

PROGRAMS = 400


@pytest.mark.parametrize("privilege", [USER, MACHINE])
def test_translated_programs_do_what_is_defined(translating: Bare, privilege: int) -> None:
    for seed in range(PROGRAMS):
        source = random.Random(f"{privilege} {seed}")
        program = make(source, candidates(privilege, ALL_EXTENSIONS), privilege)
        _, different = compare(translating, program, ALL_EXTENSIONS)
        assert not different, f"seed {seed}: {different}"
    table = CodeTable.at(CODE_TABLE)
    assert table.blocks_made > PROGRAMS and not table.emptied
