"""The disassembler and with it the rows' encodings: against GNU objdump and as, and against the manual's words."""

import random
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from smp.cpu import BY_NAME, EXT_I
from smp.csr import CSRS
from smp.disassembler import SPECIAL, disassemble
from smp.row import ROWS, Row
from smp.rows import find

PREFIX = "riscv64-linux-gnu-"
# What binutils 2.40 knows; newer ones know it too.
MARCH = "rv64gc_zba_zbb_zbc_zbs_zbkb_zbkx_zfhmin_zfh_zawrs_zicbom_zicboz_zicbop_zihintpause_svinval"
KNOWN = sum(BY_NAME[name].bit for name in [*"imafdc", "zicsr", "zifencei", *MARCH.split("_")[1:]])
OWN_NAMES = ("c.nop",)  # c.addi zero,0 to objdump

has_binutils = pytest.mark.skipif(not shutil.which(PREFIX + "as"), reason=f"no {PREFIX}as (binutils for riscv64)")


def is_plain(row: Row, word: int) -> bool:
    """Whether tools agree on it: no reserved fields, no hints with spellings of their own."""
    fields = row.written(word)
    if row.name == "fence":
        return fields["fm"] == fields["rd"] == fields["rs1"] == 0 and fields["pred"] != 0 and fields["succ"] != 0
    if row.name == "fence.i":
        return word == row.match
    if "csr" in fields:
        return fields["csr"] in CSRS
    if "exact" in row.syntax:
        return fields["rm"] == 0
    if row.bits == 16:  # a result in x0 or an immediate 0 is a hint, spelled c.slli64 or the like
        return fields.get("rd") != 0 and fields.get("imm") != 0
    return fields.get("rm") not in (5, 6)


def sample(rows: Iterable[Row], count: int) -> list[tuple[Row, int]]:
    source = random.Random(1)
    made = []
    for row in rows:
        for _ in range(300):
            word = source.getrandbits(row.bits) & ~row.mask | row.match
            if row.accepts(word) and is_plain(row, word):
                made.append((row, word))
            if len(made) % count == 0 and made and made[-1][0] is row:
                break
        while len(made) % count:  # few words fit: repeat one
            made.append(made[-1])
    return made


def run(tool: str, *arguments: str | Path) -> str:
    done = subprocess.run([PREFIX + tool, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def assemble(lines: Iterable[str], folder: Path, march: str = MARCH) -> Path:
    source, made = folder / "in.s", folder / "out.o"
    source.write_text("\n".join(lines) + "\n")
    run("as", f"-march={march}", source, "-o", made)
    return made


def words_of(made: Path, folder: Path) -> bytes:
    run("objcopy", "-O", "binary", "-j", ".text", made, folder / "out.bin")
    return (folder / "out.bin").read_bytes()


def objdump(words: list[tuple[Row, int]], folder: Path, *options: str) -> list[str]:
    """One instruction a line, spaced as `disassemble` does."""
    made = assemble([f".insn {word:#x}" for _, word in words], folder)
    text = run("objdump", "-d", *options, made)
    lines = [line.split("\t") for line in text.splitlines() if re.match(r"\s+[0-9a-f]+:\t", line)]
    assert len(lines) == len(words)
    return [re.sub(r" [#<].*", "", " ".join(line[2:])).strip() for line in lines]


def known_rows() -> list[Row]:
    return [row for row in (*ROWS.values(), *SPECIAL) if row.enabled(KNOWN) and row.name not in OWN_NAMES]


@has_binutils
def test_spelled_as_objdump_does(tmp_path: Path) -> None:
    words = sample(known_rows(), 20)
    pc = 0
    for (row, word), theirs in zip(words, objdump(words, tmp_path, "-M", "no-aliases"), strict=True):
        ours = disassemble(word, pc)
        pc += row.bits // 8
        if "target" in row.syntax:  # objdump leaves out 0x there
            ours = re.sub(r"0x([0-9a-f]+)$", r"\1", ours)
        assert ours == theirs, f"{row.name}: {word:#x}"


@has_binutils
def test_gnu_as_reads_it_back(tmp_path: Path) -> None:
    words = sample(known_rows(), 20)
    lines, expected = [], b""
    for row, word in words:
        text = disassemble(word)
        if "target" in row.syntax:
            text = re.sub(r"0x[0-9a-f]+$", f".{row.written(word)['imm']:+}", text)
        lines.append(f".option {'norvc' if row.bits == 32 else 'rvc'}\n{text}")
        expected += word.to_bytes(row.bits // 8, "little")
    # Branches to nowhere: relaxation would wait for the linker, so resolve them here.
    made = words_of(assemble([".option norelax", *lines], tmp_path), tmp_path)
    if made != expected:
        at = 0
        for (row, word), line in zip(words, lines, strict=True):
            size = row.bits // 8
            assert made[at : at + size] == word.to_bytes(size, "little"), f"{line}: {word:#x}"
            at += size
    assert made == expected


@has_binutils
def test_compressed_rows_abbreviate_what_gnu_says(tmp_path: Path) -> None:
    """objdump shows the abbreviated instruction, as assembles it to 32 bits: the base row's word."""
    rows = [row for row in known_rows() if row.bits == 16 and row.base]
    words = sample(rows, 20)
    texts = objdump(words, tmp_path)
    made = words_of(assemble([".option norvc", *_located(texts, words)], tmp_path), tmp_path)
    assert len(made) == 4 * len(words)
    for number, (row, word) in enumerate(words):
        full = int.from_bytes(made[4 * number :][:4], "little")
        assert _canonical(find(full), full) == (row.base, row.operands(word)), texts[number]


def _located(texts: list[str], words: list[tuple[Row, int]]) -> list[str]:
    """Branch targets put back relative to the instruction, which may lie elsewhere now."""
    return [
        re.sub(r"[0-9a-f]+$", f".{row.written(word)['imm']:+}", text) if "target" in row.syntax else text
        for text, (row, word) in zip(texts, words, strict=True)
    ]


def _canonical(row: Row | None, word: int) -> tuple[str, dict[str, int]]:
    """As the manual expands compressed instructions: a move is an add there, not an addi."""
    assert row is not None
    o = row.operands(word)
    if row.name == "addi" and o["imm"] == 0 and o["rs1"] != 0:
        return "add", {"rd": o["rd"], "rs1": 0, "rs2": o["rs1"]}
    return row.name, o


# What binutils 2.40 does not know: words after the manual's encodings, operands chosen to be all different.
NEWER = {
    0xF01080D3: "fli.s ft1,min",
    0xF0180053: "fli.s ft0,0x1p+0",
    0xF2100053: "fli.d ft0,-0x1p+0",
    0xF2198053: "fli.d ft0,0x1.cp+0",
    0xF21F0053: "fli.d ft0,inf",
    0xF21F8053: "fli.d ft0,nan",
    0x28C5A553: "fminm.s fa0,fa1,fa2",
    0x2AC5B553: "fmaxm.d fa0,fa1,fa2",
    0x4045F553: "fround.s fa0,fa1",
    0x42559553: "froundnx.d fa0,fa1,rtz",
    0xA0C5C553: "fleq.s a0,fa1,fa2",
    0xA2C5D553: "fltq.d a0,fa1,fa2",
    0xC2859553: "fcvtmod.w.d a0,fa1,rtz",
    0x0EC5D533: "czero.eqz a0,a1,a2",
    0x0EC5F533: "czero.nez a0,a1,a2",
    0x81C5C573: "mop.r.0 a0,a1",
    0x81D5C573: "mop.r.1 a0,a1",
    0x85C5C573: "mop.r.4 a0,a1",
    0xC1C5C573: "mop.r.16 a0,a1",
    0xCDF5C573: "mop.r.31 a0,a1",
    0x82C5C573: "mop.rr.0 a0,a1,a2",
    0x86C5C573: "mop.rr.1 a0,a1,a2",
    0xCEC5C573: "mop.rr.7 a0,a1,a2",
    0x6081: "c.mop.1",
    0x6581: "c.mop.11",
    0x6781: "c.mop.15",
    0x00B6052F: "amoadd.b a0,a1,(a2)",
    0x0EB6152F: "amoswap.h.aqrl a0,a1,(a2)",
    0x24B6052F: "amoxor.b.aq a0,a1,(a2)",
    0x62B6152F: "amoand.h.rl a0,a1,(a2)",
    0x40B6052F: "amoor.b a0,a1,(a2)",
    0x80B6052F: "amomin.b a0,a1,(a2)",
    0xA0B6152F: "amomax.h a0,a1,(a2)",
    0xC0B6052F: "amominu.b a0,a1,(a2)",
    0xE0B6152F: "amomaxu.h a0,a1,(a2)",
    0x28B6052F: "amocas.b a0,a1,(a2)",
    0x2AB6152F: "amocas.h.rl a0,a1,(a2)",
    0x28B6252F: "amocas.w a0,a1,(a2)",
    0x2EB6352F: "amocas.d.aqrl a0,a1,(a2)",
    0x2CC7452F: "amocas.q.aq a0,a2,(a4)",
    0x81A8: "c.lbu a0,2(a1)",
    0x81C8: "c.lbu a0,1(a1)",
    0x85A8: "c.lhu a0,2(a1)",
    0x85C8: "c.lh a0,0(a1)",
    0x85E8: "c.lh a0,2(a1)",
    0x89C8: "c.sb a0,1(a1)",
    0x89A8: "c.sb a0,2(a1)",
    0x8DA8: "c.sh a0,2(a1)",
    0x9D61: "c.zext.b a0",
    0x9D65: "c.sext.b a0",
    0x9D69: "c.zext.h a0",
    0x9D6D: "c.sext.h a0",
    0x9D71: "c.zext.w a0",
    0x9D75: "c.not a0",
    0x9D4D: "c.mul a0,a1",
    0x00200033: "ntl.p1",
    0x00500033: "ntl.all",
    0x900E: "c.ntl.pall",
    0x0001: "c.nop",
    0x0000: ".2byte 0x0",
    0xFFFFFFFF: ".4byte 0xffffffff",
    0x00000053 | 5 << 12: "fadd.s ft0,ft0,ft0,unknown",
}


@pytest.mark.parametrize(("word", "text"), NEWER.items(), ids=NEWER.values())
def test_newer_instructions(word: int, text: str) -> None:
    assert disassemble(word) == text


def test_every_row_is_compared_with_something() -> None:
    shown = {row.name for word in NEWER if (row := find(word))}
    families = {name.rsplit(".", 1)[0] for name in shown}
    for row in ROWS.values():
        assert row.enabled(KNOWN) or row.name in shown or row.name.rsplit(".", 1)[0] in families, row.name


@pytest.mark.parametrize(
    ("word", "base"),
    [
        (0x81A8, "lbu a0,2(a1)"),
        (0x85A8, "lhu a0,2(a1)"),
        (0x85E8, "lh a0,2(a1)"),
        (0x89A8, "sb a0,2(a1)"),
        (0x8DA8, "sh a0,2(a1)"),
        (0x9D61, "andi a0,a0,255"),
        (0x9D65, "sext.b a0,a0"),
        (0x9D69, "zext.h a0,a0"),
        (0x9D6D, "sext.h a0,a0"),
        (0x9D71, "add.uw a0,a0,zero"),
        (0x9D75, "xori a0,a0,-1"),
        (0x9D4D, "mul a0,a0,a1"),
        (0x6081, "addi zero,zero,0"),
    ],
)
def test_newer_compressed_rows_abbreviate_what_the_manual_says(word: int, base: str) -> None:
    row = find(word)
    assert row is not None
    assert disassemble(ROWS[row.base].encode(**row.operands(word))) == base


def test_targets_are_absolute_and_wrap() -> None:
    assert disassemble(0x0000006F, 0x80000000) == "jal zero,0x80000000"
    assert disassemble(0xFE000EE3, 0) == "beq zero,zero,0xfffffffffffffffc"
    assert disassemble(0x0200A001, 0x80000010) == "c.j 0x80000010"  # the upper half is the next instruction


def test_only_what_the_hart_has() -> None:
    assert disassemble(0x0EC5D533, 0, EXT_I) == ".4byte 0xec5d533"
    assert disassemble(0x0100000F, 0, EXT_I) == "fence w,unknown"
