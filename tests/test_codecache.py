"""The translator's code cache: what is in its table, and that it is emptied when it is full, on whole machines too."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import RAM_BASE, Bare, bare_machine, i
from console import TIMEOUT
from test_guest_programs import build

from mem.regions import CODE_TABLE
from smp.codecache import CodeTable, check_page, page_record, version_of

pytestmark = pytest.mark.usefixtures("translator")

TINY = 128 << 10
A0 = 10
PAGE = 4096
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tiny() -> Iterator[Bare]:
    with bare_machine(runs="jit", tb_size=TINY) as made:
        yield made


def test_a_full_cache_is_emptied_and_filled_again(tiny: Bare) -> None:
    functions = 2000
    for number in range(functions):
        tiny.put(RAM_BASE + 64 * number, i("addi", rd=A0, rs1=A0, imm=1), i("jal", imm=60))
    tiny.put(RAM_BASE + 64 * functions, i("ebreak"))
    for turn in range(1, 4):
        tiny.run(RAM_BASE)
        assert tiny.h.x[A0] == turn * functions
    table = CodeTable.at(CODE_TABLE)
    assert table.emptied >= 3 and table.asm.out < table.end


def test_each_page_of_code_keeps_a_record_of_its_own(tiny: Bare) -> None:
    pages = range(RAM_BASE, RAM_BASE + (8 << 20), PAGE)
    versions = {page: check_page(page, 0) for page in pages}
    assert len(set(versions.values())) == len(pages)
    assert all(version_of(page, 0) == versions[page] for page in pages)
    assert len({page_record(page) for page in pages}) == len(pages)


@pytest.mark.conformance
@pytest.mark.parametrize("harts", [1, 2, 4])
def test_a_machine_with_a_tiny_cache_computes_the_same(harts: int) -> None:
    options = ["-M", "virt", "-smp", str(harts), "-m", "64M", "-bios", "none", "-kernel", str(build("many_blocks"))]
    cache = ["--engine", "jit", "-accel", "tcg,tb-size=128K", "--stats", "-device", "virtio-rng-device"]
    done = subprocess.run(
        [sys.executable, "-m", "smp", *options, "-nographic", *cache],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    emptied = re.search(r"emptied (\d+) times", done.stderr)
    assert emptied and int(emptied[1]) > 10, done.stderr
