"""Every encoder of smp/x86*.py gives the bytes of GNU as, over all registers and the boundaries of displacements.

A row of ROWS is an encoder, its arguments and the instruction in Intel syntax; an argument that is a `Pick` runs over
all its values, and its name stands for the spelling of each ($name).  The curly prefixes have as take the same form
of an instruction that has several.
"""

import ctypes
import itertools
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bare import bare_machine

from mem.native import Native
from mem.regions import CODE, CODE_ALIAS, CODE_TABLE
from smp import x86, x86_locked, x86_sse
from smp.codecache import CodeTable
from smp.x86 import HART, IN_MEMORY, PINNED

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs the assembler of x86-64")

R64 = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
R32 = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", *(f"r{n}d" for n in range(8, 16))]
R16 = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{n}w" for n in range(8, 16))]
# Without REX 4 to 7 are ah to bh as bytes: the translator uses none of them.
R8 = ["al", "cl", "dl", "bl", None, None, None, None, *(f"r{n}b" for n in range(8, 16))]
XMM = [f"xmm{n}" for n in range(16)]
RSP, RBP, R12, R13 = 4, 5, 12, 13

DISPLACEMENTS = (-(1 << 31), -129, -128, -1, 0, 1, 127, 128, (1 << 31) - 1)
IMMEDIATES = (-(1 << 31), -(1 << 31) + 1, -129, -128, -1, 0, 1, 127, 128, 0x1234, (1 << 31) - 1)
CONSTANTS = (*IMMEDIATES, 1 << 31, (1 << 32) - 1, 1 << 32, -(1 << 31) - 1, 1 << 63, (1 << 63) - 1, 0x123456789ABCDEF0)
DISTANCES = (-(1 << 26), -129, -5, 0, 1, 127, 1 << 26)
CONDITIONS = {0: "o", 1: "no", 2: "b", 3: "ae", 4: "e", 5: "ne", 6: "be", 7: "a", 8: "s", 9: "ns", 10: "p", 11: "np",
              12: "l", 13: "ge", 14: "le", 15: "g"}  # fmt: skip
GUESTS = range(33)


class Pick(NamedTuple):
    """An argument that takes several values."""

    name: str
    values: dict[int, str]  # and how each is spelled


class Row(NamedTuple):
    """An encoder under test; `text` is a template, or a function of the arguments."""

    encoder: Callable[..., Any]
    arguments: tuple[int | Pick, ...]
    text: str | Callable[..., str]


def register(name: str, names: Any, without: tuple[int, ...] = ()) -> Pick:
    return Pick(name, {n: text for n, text in enumerate(names) if text and n not in without})


def values(name: str, numbers: Any) -> Pick:
    return Pick(name, {n: f"{n:+d}" if name == "disp" else str(n) for n in numbers})


def guest(number: int, names: list[str], size: str = "") -> str:
    """The operand that a guest register is."""
    return names[PINNED[number]] if number in PINNED else f"{size} [r15+{number * 8}]"


# Instructions on registers and memory: opcode, name, names of the register's and the other operand, width
WIDE_FORMS = [(wide, opcode, name, names, names) for wide, names in ((0, R32), (1, R64)) for opcode, name in (
    (0x03, "{load} add"), (0x0B, "{load} or"), (0x23, "{load} and"), (0x2B, "{load} sub"), (0x33, "{load} xor"),
    (0x3B, "{load} cmp"), (0x8B, "{load} mov"), (0x0FAF, "imul"),
    *((0x0F40 | code, f"cmov{name}") for code, name in CONDITIONS.items()),
    (0xF30FBC, "tzcnt"), (0xF30FBD, "lzcnt"), (0xF30FB8, "popcnt"))]  # fmt: skip
WIDENING_FORMS = [
    (1, 0x63, "movsxd", R64, R32),
    (1, 0x0FBE, "movsx", R64, R8), (1, 0x0FBF, "movsx", R64, R16), (1, 0x0FB7, "movzx", R64, R16),
    (0, 0x0FB6, "movzx", R32, R8), (0, 0x0FB7, "movzx", R32, R16),
]  # fmt: skip
STORE_FORMS = [
    (0, 0x88, "{store} mov", R8), (0, 0x660089, "{store} mov", R16), (0, 0x89, "{store} mov", R32),
    (1, 0x89, "{store} mov", R64),
]  # fmt: skip
DIGIT_FORMS = [
    (wide, names, opcode, digit, name)
    for wide, names in ((0, R32), (1, R64))
    for opcode, digit, name in (
        (0xF7, 2, "not"),
        (0xF7, 3, "neg"),
        (0xF7, 4, "mul"),
        (0xF7, 5, "imul"),
        (0xF7, 6, "div"),
        (0xF7, 7, "idiv"),
    )
]
SIZES = {id(R8): "byte ptr", id(R16): "word ptr", id(R32): "dword ptr", id(R64): "qword ptr"}
BASE = register("base", R64, without=(RSP, R12))
DISP = values("disp", DISPLACEMENTS)


def prefixes_of(wide: int, opcode: int, reg: int, base: int) -> None:
    """The part of an instruction in front of ModRM."""
    x86.prefixes(wide, opcode, reg, base)
    emit_byte(0xC0 | (reg & 7) << 3 | base & 7)


def aimed_condition(condition: int, distance: int) -> None:
    site = x86.jump_if(condition)
    x86.aim(site, site + distance)


def aimed_jump(distance: int) -> None:
    x86.jump_to(CodeTable.at(CODE_TABLE).asm.out + 5 + distance)


def aimed_call(distance: int) -> None:
    x86.call_to(CodeTable.at(CODE_TABLE).asm.out + 5 + distance)


def guest_text(name: str, regs: list[Any], rms: list[Any]) -> Callable[..., str]:
    return lambda _, opcode, reg, number: f"{{disp8}} {name} {regs[reg]}, {guest(number, rms, SIZES[id(rms)])}"


def get_text(host: int, number: int) -> str:
    if number == 0:
        return f"{{load}} xor {R32[host]}, {R32[host]}"
    return "" if PINNED.get(number) == host else f"{{disp8}} {{load}} mov {R64[host]}, {guest(number, R64)}"


def use_text(_: int, __: int, reg: int, number: int, spare: int) -> str:
    """A register in memory is loaded first."""
    if number in PINNED:
        return f"{{load}} add {R64[reg]}, {R64[PINNED[number]]}"
    return f"{{disp8}} {{load}} mov {R64[spare]}, [r15+{number * 8}]; {{load}} add {R64[reg]}, {R64[spare]}"


def put_text(number: int, host: int) -> str:
    return "" if PINNED.get(number) == host else f"{{disp8}} {{store}} mov {guest(number, R64)}, {R64[host]}"


def constant_text(host: int, value: int) -> str:
    """The shortest form: as takes the sign-extended one itself where it is asked for a 64-bit register."""
    value &= (1 << 64) - 1
    if value == 0:
        return f"{{load}} xor {R32[host]}, {R32[host]}"
    if value < 1 << 32:
        return f"mov {R32[host]}, {value}"
    return f"mov {R64[host]}, {value - (1 << 64) if value >> 63 else value}"


def rows() -> Iterator[Row]:
    yield Row(prefixes_of, (1, 0x03, register("reg", R64), register("rm", R64)), "{load} add $reg, $rm")
    for wide, opcode, name, regs, rms in [*WIDE_FORMS, *WIDENING_FORMS]:
        size = SIZES[id(rms)]
        reg = register("reg", regs)
        yield Row(x86.op_reg, (wide, opcode, reg, register("rm", rms)), f"{name} $reg, $rm")
        yield Row(x86.op_mem, (wide, opcode, reg, BASE, DISP), f"{{disp8}} {name} $reg, {size} [$base$disp]")
        if rms is not R8:
            yield Row(x86.op_guest, (wide, opcode, reg, values("guest", GUESTS)), guest_text(name, regs, rms))
    yield Row(x86.op_mem, (1, 0x8D, register("reg", R64), BASE, DISP), "{disp8} lea $reg, [$base$disp]")
    for wide, opcode, name, regs in STORE_FORMS:
        yield Row(x86.op_mem, (wide, opcode, register("reg", regs), BASE, DISP), f"{{disp8}} {name} [$base$disp], $reg")
    for wide, names, opcode, digit, name in DIGIT_FORMS:
        yield Row(x86.op_reg, (wide, opcode, digit, register("rm", names)), f"{name} $rm")
        yield Row(x86.op_mem, (wide, opcode, digit, BASE, DISP), f"{{disp8}} {name} {SIZES[id(names)]} [$base$disp]")
    yield Row(x86.op_reg, (0, 0x85, register("reg", R32), register("rm", R32)), "test $rm, $reg")
    yield Row(x86.op_reg, (1, 0x85, register("reg", R64), register("rm", R64)), "test $rm, $reg")
    for code, name in CONDITIONS.items():
        yield Row(x86.op_reg, (0, 0x0F90 | code, 0, register("rm", R8)), f"set{name} $rm")
    yield Row(x86.op_reg, (0, 0xFF, 2, register("rm", R64)), "call $rm")
    yield Row(x86.op_reg, (0, 0xFF, 4, register("rm", R64)), "jmp $rm")
    yield Row(x86.op_mem, (0, 0xFF, 4, BASE, DISP), "{disp8} jmp qword ptr [$base$disp]")
    yield Row(x86.get, (register("host", R64), values("guest", GUESTS)), get_text)
    yield Row(x86.put, (values("guest", range(1, 33)), register("host", R64)), put_text)
    yield Row(x86.load_constant, (register("host", R64), values("value", CONSTANTS)), constant_text)
    yield from immediate_rows()
    yield from locked_rows()
    yield from bit_rows()
    yield from other_rows()
    yield from sse_rows()


# Opcode of the doubleword's form, name; a byte's is one less, a halfword's has the prefix 66.
MODIFYING = [(0x01, "add"), (0x09, "or"), (0x21, "and"), (0x31, "xor"), (0x0FC1, "xadd"), (0x0FB1, "cmpxchg")]
OPERANDS = [(0, R8, -1), (0, R16, 0x66 << 16), (0, R32, 0), (1, R64, 0)]


def locked_rows() -> Iterator[Row]:
    for wide, names, change in OPERANDS:
        reg = register("reg", names)
        for opcode, name in MODIFYING:
            yield Row(x86_locked.locked, (wide, opcode + change, reg, BASE), f"lock; {{disp8}} {name} [$base], $reg")
        yield Row(x86.op_mem, (wide, 0x87 + change, reg, BASE, DISP), "{disp8} xchg [$base$disp], $reg")


def bit_rows() -> Iterator[Row]:
    host = register("host", R64)
    yield Row(x86_locked.bswap, (host,), "bswap $host")
    for digit, name in ((4, "bt"), (5, "bts"), (6, "btr"), (7, "btc")):
        yield Row(x86_locked.bit_immediate, (digit, host, values("number", range(64))), f"{name} $host, $number")
    for opcode, name in ((0x0FA3, "bt"), (0x0FAB, "bts"), (0x0FB3, "btr"), (0x0FBB, "btc")):
        yield Row(x86.op_reg, (1, opcode, register("reg", R64), register("rm", R64)), f"{name} $rm, $reg")
    for wide, names in ((0, R32), (1, R64)):
        for digit, name in ((0, "rol"), (1, "ror")):
            yield Row(x86.op_reg, (wide, 0xD3, digit, register("rm", names)), f"{name} $rm, cl")
        counts = values("count", range(2, 64 if wide else 32))
        yield Row(x86.shift_immediate, (wide, 1, register("host", names), counts), "ror $host, $count")


def immediate_rows() -> Iterator[Row]:
    for wide, names in ((0, R32), (1, R64)):
        for digit, name in ((0, "add"), (1, "or"), (4, "and"), (5, "sub"), (6, "xor"), (7, "cmp")):
            short = values("value", [n for n in IMMEDIATES if -128 <= n < 128])
            long = values("value", [n for n in IMMEDIATES if not -128 <= n < 128])
            yield Row(x86.immediate, (wide, digit, register("host", names), short), f"{name} $host, $value")
            # as has a shorter form for rax: `test_immediates_of_rax_are_what_objdump_reads`
            not_rax = register("host", names, without=(0,))
            yield Row(x86.immediate, (wide, digit, not_rax, long), f"{name} $host, $value")
        counts = values("count", range(1, 64 if wide else 32))
        for digit, name in ((4, "shl"), (5, "shr"), (7, "sar")):
            # A count of 1 has an opcode of its own, which as prefers.
            yield Row(
                x86.shift_immediate, (wide, digit, register("host", names), counts),
                lambda w, d, h, c, name=name, names=names:
                    f"{name} {names[h]}, {c}" if c != 1 else f".byte {shift_by_one(w, d, h)}",
            )  # fmt: skip


def shift_by_one(wide: int, digit: int, host: int) -> str:
    """The general form with a count of 1."""
    rex = [0x40 | wide << 3 | host >> 3] if wide or host >> 3 else []
    return ", ".join(hex(n) for n in [*rex, 0xC1, 0xC0 | digit << 3 | host & 7, 1])


def other_rows() -> Iterator[Row]:
    for wide, names in ((0, R32), (1, R64)):
        for prefix, name in ((1, "shlx"), (2, "sarx"), (3, "shrx")):
            yield Row(
                x86.shift_by,
                (wide, prefix, register("host", names), register("source", names), register("count", names)),
                f"{name} $host, $source, $count",
            )
    yield Row(
        x86.rotated,
        (register("host", R32), register("source", R32), values("count", range(32))),
        "rorx $host, $source, $count",
    )
    spare = register("spare", R64, without=tuple(n for n in range(16) if n not in (0, 1, 2)))
    yield Row(x86.use_guest, (1, 0x03, register("reg", R64), values("guest", GUESTS), spare), use_text)
    base = register("base", R64, without=(RBP, R13))
    index = register("index", R64, without=(RSP,))
    for scale in range(4):
        for wide, names in ((0, R32), (1, R64)):
            arguments = (register("reg", names), base, index, scale)
            yield Row(x86.indexed, (wide, 0x8D, *arguments), f"{{rex}} lea $reg, [$base+$index*{1 << scale}]")
            yield Row(x86.indexed, (wide, 0x8B, *arguments), f"{{rex}} {{load}} mov $reg, [$base+$index*{1 << scale}]")
    for wide, opcode, name, regs in [(1, 0x63, "movsxd", R64), (1, 0x0FBF, "movsx", R64), *STORE_FORMS]:
        size = {0x63: "dword ptr ", 0x0FBF: "word ptr "}.get(opcode, "")
        text = f"{{rex}} {name} $reg, {size}[$base+$index*1]"
        if "{store}" in name:
            text = f"{{rex}} {name} [$base+$index*1], $reg"
        yield Row(x86.indexed, (wide, opcode, register("reg", regs), base, index, 0), text)
    yield Row(x86.jump_if, (Pick("cc", CONDITIONS),), "{disp32} j$cc .+6")
    yield Row(x86.jump, (), "{disp32} jmp .+5")
    distance = values("distance", DISTANCES)
    yield Row(aimed_condition, (Pick("cc", CONDITIONS), distance), "{disp32} j$cc .+6+$distance")
    yield Row(aimed_jump, (distance,), "{disp32} jmp .+5+$distance")
    yield Row(aimed_call, (distance,), "call .+5+$distance")


SCALAR = [("sd", "qword ptr"), ("ss", "dword ptr")]
THREE_OPERANDS = [
    ("add", x86_sse.ADD), ("mul", x86_sse.MUL), ("sub", x86_sse.SUB), ("min", x86_sse.MIN), ("div", x86_sse.DIV),
    ("max", x86_sse.MAX), ("sqrt", x86_sse.SQRT), ("fmadd213", x86_sse.FMADD), ("fmsub213", x86_sse.FMSUB),
    ("fnmadd213", x86_sse.FNMADD), ("fnmsub213", x86_sse.FNMSUB),
]  # fmt: skip


def sse_rows() -> Iterator[Row]:
    reg, left, rm = register("reg", XMM), register("left", XMM), register("rm", XMM)
    far = values("disp", (0, 128, -129))
    for single, (letters, size) in enumerate(SCALAR):
        for name, forms in THREE_OPERANDS:
            yield from sse_row(f"v{name}{letters}", forms[single], size, reg, left, rm)
            if "213" in name:
                accumulating = name.replace("213", "231")
                yield from sse_row(f"v{accumulating}{letters}", forms[single] + x86_sse.TO_ADDEND, size, reg, left, rm)
        yield from sse_row(f"vcvt{letters}2{SCALAR[1 - single][0]}", x86_sse.CONVERT[single], size, reg, left, rm)
        for name, forms in ((f"ucomi{letters}", x86_sse.UNORDERED), (f"comi{letters}", x86_sse.ORDERED)):
            yield Row(x86_sse.vex_reg, (forms[single], reg, 0, rm), f"v{name} $reg, $rm")
            yield Row(
                x86_sse.vex_mem, (forms[single], reg, 0, BASE, far), f"{{disp8}} v{name} $reg, {size} [$base$disp]"
            )
        load, store = x86_sse.LOAD[single], x86_sse.STORE[single]
        yield Row(x86_sse.vex_mem, (load, reg, 0, BASE, DISP), f"{{disp8}} vmov{letters} $reg, {size} [$base$disp]")
        yield Row(x86_sse.vex_mem, (store, reg, 0, BASE, DISP), f"{{disp8}} vmov{letters} {size} [$base$disp], $reg")
        for wide, names, int_size in ((0, R32, "dword ptr"), (x86_sse.WIDE_FORM, R64, "qword ptr")):
            from_int, whole, other = x86_sse.FROM_INT[single] | wide, register("reg", names), register("rm", names)
            yield from sse_row(f"vcvtsi2{letters}", from_int, int_size, reg, left, other)
            for name, forms in ((f"vcvt{letters}2si", x86_sse.TO_INT), (f"vcvtt{letters}2si", x86_sse.TO_INT_RTZ)):
                to_int = forms[single] | wide
                yield Row(x86_sse.vex_reg, (to_int, whole, 0, rm), f"{name} $reg, $rm")
                yield Row(x86_sse.vex_mem, (to_int, whole, 0, BASE, far), f"{{disp8}} {name} $reg, {size} [$base$disp]")
    for name, form in (
        ("vorps", x86_sse.OR_BITS),
        ("vxorps", x86_sse.XOR_BITS),
        ("vandps", x86_sse.AND_BITS),
        ("vpcmpeqd", x86_sse.ALL_EQUAL),
    ):
        yield Row(x86_sse.vex_reg, (form, reg, left, rm), f"{{load}} {name} $reg, $left, $rm")
    yield Row(x86_sse.vex_reg, (x86_sse.COPY, reg, 0, rm), "{load} vmovapd $reg, $rm")
    yield Row(
        x86_sse.vex_mem, (x86_sse.STORE_ALL, reg, 0, BASE, DISP), "{disp8} vmovups xmmword ptr [$base$disp], $reg"
    )
    yield Row(x86_sse.vex_reg, (x86_sse.MERGE, reg, left, rm), "{load} vmovss $reg, $left, $rm")
    yield Row(x86_sse.vex_reg, (x86_sse.FROM_GENERAL, reg, 0, register("rm", R64)), "vmovq $reg, $rm")
    base, index = register("base", R64, without=(RBP, R13)), register("index", R64, without=(RSP,))
    for single, (letters, size) in enumerate(SCALAR):
        load, store = x86_sse.LOAD[single], x86_sse.STORE[single]
        place = f"{size} [$base+$index*1]"
        yield Row(x86_sse.vex_indexed, (load, reg, base, index), f"{{vex3}} vmov{letters} $reg, {place}")
        yield Row(x86_sse.vex_indexed, (store, reg, base, index), f"{{vex3}} vmov{letters} {place}, $reg")
    offset = values("disp", (0, 127, 128, 4096))
    yield Row(x86_sse.load_mxcsr, (offset,), "{disp8} ldmxcsr [r15$disp]")
    yield Row(x86_sse.store_mxcsr, (offset,), "{disp8} stmxcsr [r15$disp]")


def sse_row(name: str, form: int, size: str, reg: Pick, left: Pick, rm: Pick) -> Iterator[Row]:
    """An instruction of three operands, the last in a register and in memory."""
    few = register("base", R64, without=tuple(n for n in range(16) if n not in (0, 5, 7, 8, 13, 15)))
    far = values("disp", (0, 128, -129))
    yield Row(x86_sse.vex_reg, (form, reg, left, rm), f"{{load}} {name} $reg, $left, $rm")
    yield Row(x86_sse.vex_mem, (form, reg, left, few, far), f"{{disp8}} {name} $reg, $left, {size} [$base$disp]")


ROWS = list(rows())
# Natives that rows above or tests below reach through others.
COVERED = {
    "vex": x86_sse.vex_reg,
    "based": x86.op_mem,
    "prefixes": prefixes_of,
    "aim": aimed_condition,
    "jump_to": aimed_jump,
    "call_to": aimed_call,
}
OTHERWISE = {"align_jump": "test_a_jumps_displacement_lies_in_one_piece"}


class Case(NamedTuple):
    text: str
    bytes: bytes
    call: str


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    with bare_machine(runs="jit"):
        yield


def emit_byte(value: int) -> None:
    asm = CodeTable.at(CODE_TABLE).asm
    ctypes.c_uint8.from_address(asm.out + CODE_ALIAS).value = value
    asm.out += 1


SCRATCH = CODE + 0x10000


def emitted(encoder: Callable[..., Any], arguments: tuple[int, ...], at: int = SCRATCH) -> bytes:
    """What the encoder puts at the cursor."""
    asm = CodeTable.at(CODE_TABLE).asm
    asm.out = at
    encoder(*arguments)
    return ctypes.string_at(at, asm.out - at)


def spell(row: Row, picked: tuple[tuple[int, str], ...]) -> str:
    if not isinstance(row.text, str):
        return row.text(*(number for number, _ in picked))
    text = row.text
    for argument, (_, spelling) in zip(row.arguments, picked, strict=True):
        if isinstance(argument, Pick):
            text = text.replace(f"${argument.name}", spelling)
    return text


def cases(row: Row) -> Iterator[Case]:
    choices = [list(a.values.items()) if isinstance(a, Pick) else [(a, "")] for a in row.arguments]
    for picked in itertools.product(*choices):
        numbers = tuple(number for number, _ in picked)
        yield Case(spell(row, picked), emitted(row.encoder, numbers), f"{row.encoder.__name__}{numbers}")


def assemble(lines: list[str], where: Path) -> bytes:
    source, linked, binary = where / "it.s", where / "it.o", where / "it.bin"
    source.write_text(".intel_syntax noprefix\n" + "\n".join(lines) + "\n")
    subprocess.run(["as", "--64", "-O0", "-o", linked, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", linked, binary], check=True)
    return binary.read_bytes()


def test_encoders_give_the_bytes_of_gnu_as(tmp_path: Path) -> None:
    made = [case for row in ROWS for case in cases(row)]
    reference = assemble([case.text for case in made], tmp_path)
    at = 0
    for case in made:
        theirs = reference[at : at + len(case.bytes)]
        assert theirs == case.bytes, f"{case.call}: {case.bytes.hex()}, as has {theirs.hex()} for {case.text}"
        at += len(case.bytes)
    assert at == len(reference)


def disassembled(code: bytes, where: Path) -> list[str]:
    """objdump's text of each instruction."""
    binary = where / "it.bin"
    binary.write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn", binary]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [" ".join(line.split(":", 1)[1].split()) for line in out.splitlines() if re.match(r" *[0-9a-f]+:\t", line)]


def test_immediates_of_rax_are_what_objdump_reads(tmp_path: Path) -> None:
    code, expected = b"", []
    for digit, name in ((0, "add"), (1, "or"), (4, "and"), (5, "sub"), (6, "xor"), (7, "cmp")):
        for value in (n for n in IMMEDIATES if not -128 <= n < 128):
            code += emitted(x86.immediate, (1, digit, 0, value)) + emitted(x86.immediate, (0, digit, 0, value))
            expected.append(f"{name} rax,{value & (1 << 64) - 1:#x}")
            expected.append(f"{name} eax,{value & (1 << 32) - 1:#x}")
    assert disassembled(code, tmp_path) == expected


@pytest.mark.parametrize("opcode_bytes", [1, 2])
def test_a_jumps_displacement_lies_in_one_piece(opcode_bytes: int, tmp_path: Path) -> None:
    """`aim` replaces it while others may execute it."""
    paddings = b""
    for offset in range(16):
        padding = emitted(x86.align_jump, (opcode_bytes,), SCRATCH + offset)
        displacement = SCRATCH + offset + len(padding) + opcode_bytes
        assert displacement % 16 <= 12
        paddings += padding
    assert {text.split(" ")[0] for text in disassembled(paddings, tmp_path)} <= {"nop", "data16", "xchg"}


def test_every_encoder_has_a_row() -> None:
    mine = [item for item in Native.registry if item.function.__module__.startswith("smp.x86") and not item.inline]
    rows = {row.encoder for row in ROWS}
    tested = {name for name, encoder in COVERED.items() if encoder in rows}
    tested |= {name for name, test in OTHERWISE.items() if test in globals()}
    missing = [item.__name__ for item in mine if item not in rows and item.__name__ not in tested]
    assert missing == []
    assert all(PINNED.get(number, IN_MEMORY) == x86.PIN[number] for number in range(64)) and R64[HART] == "r15"
