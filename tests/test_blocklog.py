"""Translated blocks as text: -d in_asm and out_asm, and perf's map; every block once, whole, and in order."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bare import Bare, bare_machine, i
from console import started
from qmp_client import Qmp
from test_machine import Assemble, guest  # noqa: F401

from mem.machine import machine
from mem.memmap import RAM_BASE
from mem.regions import BLOCK_RECORD, CODE, CODE_TABLE, HOT, LOG_LINES, MAX_HARTS, SHARED, SHARED_BYTES
from smp import blocktext
from smp.blocklog import BlockFile, BlockRecord, Translated, records
from smp.blocktext import BlockText, Symbols, guest_text, host_text, neighbours
from smp.codecache import CodeTable
from smp.config import MachineConfig
from smp.config_check import check
from smp.cpu import ConfigError
from smp.hot import HotBlocks
from smp.options import parse


@pytest.fixture
def bare() -> Iterator[Bare]:
    with bare_machine(runs="jit") as made:
        yield made


def loop(bare: Bare) -> None:
    bare.h.x[5] = 3
    bare.run_here(
        i("addi", rd=6, rs1=6, imm=1),
        i("addi", rd=5, rs1=5, imm=-1),
        i("bne", rs1=5, rs2=0, imm=-8),
        i("jal", rd=0, imm=0x1000),
    )


def written(bare: Bare, tmp_path: Path, *items: str) -> str:
    """The log of the loop."""
    path = tmp_path / "log"
    with path.open("wb") as log:
        text = BlockText(MachineConfig(log=frozenset(items), engine="jit"), log.fileno())
        loop(bare)
        text.close()
    return path.read_text()


def test_records_hold_every_block(bare: Bare) -> None:
    file = BlockFile()
    loop(bare)
    blocks = file.batch()
    t = CodeTable.at(CODE_TABLE)
    assert len(blocks) == t.blocks_made > 1
    assert [b.vpc for b in blocks[:2]] == [RAM_BASE, RAM_BASE + 12]
    assert len(blocks[0].guest) == 12 and blocks[0].guest == bare.peek(RAM_BASE, 12)
    assert blocks[-1].code + len(blocks[-1].host) == t.asm.out
    assert all(b.privilege == 3 and b.hart == 0 and b.ppc == b.vpc for b in blocks)
    assert file.batch() == [] and not file.lost()
    file.close()


def test_a_record_that_is_not_whole_waits(bare: Bare) -> None:
    file = BlockFile()
    loop(bare)
    data = os.pread(file.file.fileno(), 1 << 20, 0)
    whole = list(records(data))
    sizes = [BlockRecord.sizeof() + len(b.guest) + len(b.host) for b in whole]
    for cut in (0, 1, sizes[0] - 1, sizes[0], sizes[0] + BlockRecord.sizeof(), len(data) - 1):
        assert list(records(data[:cut])) == whole[: sum(sum(sizes[: n + 1]) <= cut for n in range(len(sizes)))]
    file.close()


def test_a_full_disk_is_said(bare: Bare, capsys: pytest.CaptureFixture[str]) -> None:
    text = BlockText(MachineConfig(log=frozenset(["in_asm"]), engine="jit"), 2)
    full = os.open("/dev/full", os.O_WRONLY)
    machine().blocks_fd = full
    loop(bare)
    text.close()
    os.close(full)
    assert "blocks are missing" in capsys.readouterr().err


def test_nothing_is_written_unless_asked_for(bare: Bare) -> None:
    assert machine().blocks_fd == 0
    loop(bare)
    assert CodeTable.at(CODE_TABLE).blocks_made > 1 and not machine().blocks_lost


def test_in_asm_has_the_guests_instructions(bare: Bare, tmp_path: Path) -> None:
    lines = written(bare, tmp_path, "in_asm").splitlines()
    assert lines[:6] == [
        "----------------",
        "IN:",
        "Priv: M; hart 0; physical 0x80000000",
        "0x0000000080000000:  00130313          addi            t1,t1,1",
        "0x0000000080000004:  fff28293          addi            t0,t0,-1",
        "0x0000000080000008:  fe029ce3          bne             t0,zero,0x80000000",
    ]
    assert "OUT" not in "".join(lines)


def test_compressed_instructions_have_four_digits() -> None:
    block = Translated(0x1000, 0x80001000, CODE, bytes.fromhex("0505 13050500"), b"", 0, 0)
    assert [" ".join(line.split()) for line in guest_text(block)] == [
        "0x0000000000001000: 0505 c.addi a0,1",
        "0x0000000000001002: 00050513 addi a0,a0,0",
    ]


def test_out_asm_has_all_host_bytes(bare: Bare, tmp_path: Path) -> None:
    out = written(bare, tmp_path, "out_asm")
    assert "IN:" not in out
    found = re.findall(r"^OUT: \[size=(\d+)\] \S+\n((?:0x.*\n)+)", out, re.MULTILINE)
    assert len(found) == CodeTable.at(CODE_TABLE).blocks_made
    for size, text in found:
        shown = [re.match(r"(0x[0-9a-f]+):  ((?:[0-9a-f]{2} )+)", line) for line in text.splitlines()]
        assert sum(len(line[2].split()) for line in shown if line) == int(size)
    assert "sub    r14" in found[0][1]  # the block's instructions, taken off the quantum


def test_without_objdump_host_code_is_bytes(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(blocktext.shutil, "which", lambda name: None)
    out = written(bare, tmp_path, "out_asm")
    assert "install binutils" in capsys.readouterr().err
    sizes = [int(n) for n in re.findall(r"size=(\d+)", out)]
    assert sum(len(line.partition(":")[2].split()) for line in out.splitlines() if line.startswith("0x")) == sum(sizes)


def test_blocks_that_lie_apart_are_disassembled_apart() -> None:
    ret = b"\xc3"
    blocks = [Translated(0, 0, code, b"", ret, 0, 0) for code in (CODE, CODE + 16, CODE + 64, CODE)]
    assert [len(run) for run in neighbours(blocks)] == [2, 1, 1]
    texts = host_text(blocks, blocktext.shutil.which("objdump"))
    assert sorted(texts) == [CODE, CODE + 16, CODE + 64]
    assert all(text.endswith("ret") and text.startswith(f"{at:#x}") for at, text in texts.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-d", "in_asm", "--engine", "interp"], "-d in_asm: .* use --engine jit"),
        (["-d", "in_asm,out_asm", "--engine", "interp"], "-d in_asm,out_asm: .* use --engine jit"),
        (["-perfmap", "--engine", "interp"], "-perfmap: .* use --engine jit"),
        (["-d", "exec,in_asm", "--engine", "jit"], "-d in_asm: .* leave exec out"),
        (["-d", "exec,in_asm"], "-d in_asm: .* leave exec out"),
    ],
)
def test_what_needs_the_translator_says_so(arguments: list[str], words: str, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\0" * 64)
    with pytest.raises(ConfigError, match=words):
        check(parse(["-kernel", str(kernel), *arguments]))


# Whole machines ----------------------------------------------------------------------------------------------------

PROGRAM = """
    only_first
    .type work, @function
work:
    li t0, 100000000
again:
    addi t0, t0, -1
    bnez t0, again
    finish 0x5555
"""


def symbols(elf: str) -> dict[str, int]:
    out = subprocess.run(["riscv64-linux-gnu-nm", elf], check=True, capture_output=True, text=True).stdout
    return {line.split()[2]: int(line.split()[0], 16) for line in out.splitlines()}


@pytest.mark.conformance
@pytest.mark.parametrize("harts", [1, 4])
def test_a_machine_logs_every_block(guest: Callable[[str], str], tmp_path: Path, harts: int) -> None:  # noqa: F811
    elf, log = guest(PROGRAM), tmp_path / "log"
    options = ["-nographic", "--engine", "jit", "-smp", str(harts), "-d", "in_asm,out_asm", "-D", str(log), "--stats"]
    with started(*options, "-kernel", elf) as console:
        assert console.wait() == 0
        made = re.search(rb"translated: (\d+) blocks of (\d+) instructions", console.errors)
    assert made
    text = log.read_text()
    loops = len(re.findall(r"\nOUT: \[size=\d+\] loop_at_", text))  # if the optimizer came to it
    assert text.count("\nIN: ") == text.count("\nOUT: ") - loops == int(made[1])
    assert len(re.findall(r"^0x[0-9a-f]{16}:", text, re.MULTILINE)) == int(made[2])
    assert f"IN: again\nPriv: M; hart 0; physical {symbols(elf)['again']:#x}\n" in text


@pytest.mark.conformance
def test_a_machine_writes_a_map_for_itself_and_each_hart(guest: Callable[[str], str], tmp_path: Path) -> None:  # noqa: F811
    monitor = ("-S", "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off")  # it is over before one has looked
    options = ("-nographic", "--engine", "jit", "-smp", "2", "-perfmap", *monitor)
    with started(*options, "-kernel", guest(PROGRAM)) as console, Qmp(tmp_path / "qmp") as qmp:
        processes = [console.process, *console.processes(harts=2)]
        qmp("cont")
        assert console.wait() == 0
    maps = [Path(f"/tmp/perf-{process.pid}.map") for process in processes]
    found = [path for path in maps if path.exists()]
    assert len(found) == 3  # the I/O process and the optimizer have none
    for path in found:
        lines = path.read_text().splitlines()
        path.unlink()
        assert all(re.fullmatch(r"[0-9a-f]+ [0-9a-f]+ [\w.+]+", line) for line in lines)
        assert lines[0].split()[2] == "hartbeat_pieces"
        assert {"again", "hartbeat_smp_translate_translate_block"} <= {line.split()[2] for line in lines}
        assert int(lines[0].split()[0], 16) == CODE


def test_symbols_have_sizes_and_limits(guest: Callable[[str], str]) -> None:  # noqa: F811
    elf = guest(PROGRAM)
    at = symbols(elf)
    names = Symbols([Path(elf)])
    assert names.name(at["again"]) == "again" and names.name(at["again"] + 4) == "again+0x4"
    assert names.name(0) == names.name((1 << 64) - 2) == ""
    assert Symbols([]).name(at["again"]) == ""


def test_a_signal_while_the_log_is_written_ends_it(bare: Bare, capsys: pytest.CaptureFixture[str]) -> None:
    text = BlockText(MachineConfig(log=frozenset(["in_asm"]), engine="jit"), 2)
    loop(bare)
    text.close(lambda: True)
    assert "not complete" in capsys.readouterr().err


def test_the_record_of_a_block_lies_apart_from_the_others() -> None:
    records = sorted([(LOG_LINES, MAX_HARTS * 256), (BLOCK_RECORD, BlockRecord.sizeof()), (HOT, HotBlocks.sizeof())])
    ends = [start + size for start, size in records]
    assert all(end <= start for end, (start, _) in zip(ends, [*records[1:], (SHARED + SHARED_BYTES, 0)], strict=True))
