"""Instruction words to text, from the rows: the spelling of GNU objdump with `-M no-aliases`, so that GNU as reads it.

Besides the rows' names there are those of special cases (c.nop, prefetch, ntl, fence.tso).
"""

import re

from smp.cpu import EXT_C, EXT_I, EXT_ZICBOP, EXT_ZIHINTNTL
from smp.csr import CSRS
from smp.fpformat import FLI_INFINITY, FLI_MIN_NORMAL, FLI_NAN, FLI_VALUES
from smp.row import Kind, Row, unlisted
from smp.rows import ALL_EXTENSIONS, find


def _run(letters: str, first: int, last: int) -> list[str]:
    return [f"{letters}{number}" for number in range(first, last + 1)]


# psABI, "Register Convention"
X_NAMES = ["zero", "ra", "sp", "gp", "tp", *_run("t", 0, 2), *_run("s", 0, 1), *_run("a", 0, 7), *_run("s", 2, 11),
           *_run("t", 3, 6)]  # fmt: skip
F_NAMES = [*_run("ft", 0, 7), *_run("fs", 0, 1), *_run("fa", 0, 7), *_run("fs", 2, 11), *_run("ft", 8, 11)]
ROUNDING = ("rne", "rtz", "rdn", "rup", "rmm", "unknown", "unknown", "")  # the last: frm decides
EXACT_ROUNDING = ("", *ROUNDING[1:7], "dyn")  # where no mode can matter, assemblers choose rne


def _special() -> list[Row]:
    made = [unlisted("fence.tso", "1000 0011 0011 00000 000 00000 0001111", "", Kind.SYSTEM, ext=EXT_I)]
    made.append(unlisted("c.nop", "0000000000000001", "", Kind.ALU, ext=EXT_C))
    for name, low in (("i", "00000"), ("r", "00001"), ("w", "00011")):
        pattern = f"imm[11:5] {low} rs1 110 00000 0010011"
        made.append(unlisted(f"prefetch.{name}", pattern, "imm(rs1)", Kind.SYSTEM, ext=EXT_ZICBOP))
    for name, rs2 in (("p1", "00010"), ("pall", "00011"), ("s1", "00100"), ("all", "00101")):
        pattern = f"0000000 {rs2} 00000 000 00000 0110011"
        made.append(unlisted(f"ntl.{name}", pattern, "", Kind.SYSTEM, ext=EXT_ZIHINTNTL))
        pattern = f"1001 00000 {rs2} 10"
        made.append(unlisted(f"c.ntl.{name}", pattern, "", Kind.SYSTEM, ext=EXT_ZIHINTNTL | EXT_C))
    return made


SPECIAL = _special()


def disassemble(word: int, pc: int = 0, extensions: int = ALL_EXTENSIONS) -> str:
    """One line for the instruction at pc; upper bits are ignored where the lowest two say that it has 16."""
    word &= 0xFFFFFFFF if word & 3 == 3 else 0xFFFF
    row = find(word, extensions, SPECIAL) or find(word, extensions)
    if row is None:
        return f".4byte {word:#x}" if word & 3 == 3 else f".2byte {word:#x}"
    fields = row.written(word)
    operands = ",".join(filter(None, (_operand(part, fields, pc) for part in row.syntax.split(", "))))
    return f"{_mnemonic(row, fields)} {operands}".rstrip()


def _mnemonic(row: Row, fields: dict[str, int]) -> str:
    if row.name.startswith("mop."):
        return row.name.removesuffix("n") + str(fields["imm"])
    order = ("", "rl", "aq", "aqrl")[2 * fields.get("aq", 0) + fields.get("rl", 0)]
    return f"{row.name}.{order}" if order else row.name


def _operand(part: str, fields: dict[str, int], pc: int) -> str:
    """One operand; a word of the syntax that names no field stands for itself."""
    return re.sub(r"[a-z]+\d?", lambda found: _field(found[0], fields, pc), part)


def _field(name: str, fields: dict[str, int], pc: int) -> str:
    imm = fields.get("imm", 0)
    if name in ("rd", "rs1", "rs2", "rs3"):
        return X_NAMES[fields[name]]
    if name in ("fd", "fs1", "fs2", "fs3"):
        return F_NAMES[fields[name.replace("f", "r", 1)]]
    if name in ("pred", "succ"):
        return (
            "".join(letter for bit, letter in zip((8, 4, 2, 1), "iorw", strict=True) if fields[name] & bit) or "unknown"
        )
    match name:
        case "imm":
            return str(imm)
        case "uimm":
            return hex(imm)
        case "upper":
            return hex(imm >> 12 & 0xFFFFF)
        case "target":
            return hex(pc + imm & ALL_EXTENSIONS)
        case "zimm":
            return str(fields["rs1"])
        case "rm":
            return ROUNDING[fields["rm"]]
        case "exact":
            return EXACT_ROUNDING[fields["rm"]]
        case "csr":
            return CSRS[fields["csr"]].name if fields["csr"] in CSRS else hex(fields["csr"])
        case "fli":
            return _constant(imm)
    return name


def _constant(index: int) -> str:
    """A constant of fli as C's %a prints it, without needless zeros."""
    words = {FLI_MIN_NORMAL: "min", FLI_INFINITY: "inf", FLI_NAN: "nan"}
    return words.get(index) or re.sub(r"\.?0+p", "p", float(FLI_VALUES[index] or 0).hex())
