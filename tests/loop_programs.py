"""Random loops for a bare machine: written, optimized, and run by the translator or the interpreter."""

import random

from bare import RAM_BASE, Bare, Instruction, i

from mem.machine import machine
from smp.codecache import CodePage, page_record
from smp.interpreter import run_quantum
from smp.loopcode import is_known
from smp.optimizer import Optimizer
from smp.row import ROWS, Field, Kind
from smp.translated import run_translated

DATA = RAM_BASE + 0x10_0000
DATA_BYTES = 0xA_0000  # further than the base registers come
HEAD = RAM_BASE + 16
COUNT, BASES, FREE = 5, (8, 9), (1, 2, 6, 7, 10, 11, 12, 13, 28)


def optimize(bare: Bare, head: int) -> bool:
    """Have the loop at `head` compiled, whose page has been translated before."""
    return Optimizer().optimize(head, CodePage.at(page_record(head & ~0xFFF)).version, head, 0)


def random_body(source: random.Random) -> list[Instruction]:
    """Arithmetic, accesses in and across pages (misaligned ones too), branches over a few instructions."""
    rows = [r for r in ROWS.values() if is_known(r) and r.bits == 32 and r.kind in (Kind.ALU, Kind.LOAD, Kind.STORE)]
    body: list[Instruction] = []
    for _ in range(source.randint(2, 14)):
        row = source.choice(rows if source.random() < 0.6 else [r for r in rows if r.size])
        fields = dict.fromkeys(row.fields, 0)
        for name in fields:
            if name in ("rd", "rs1", "rs2"):
                fields[name] = source.choice(FREE)
        if row.size:
            fields["rs1"] = source.choice(BASES)
            fields["imm"] = source.choice((0, 8, 16, -8, 4, 2, 1)) if source.random() < 0.9 else source.randint(-64, 64)
        elif "imm" in fields:
            fields["imm"] = random_immediate(source, row.fields["imm"])
        body.append((row.name, fields))
    for _ in range(source.randint(0, 2)):
        at = source.randrange(len(body))
        name = source.choice(("beq", "bne", "blt", "bge", "bltu", "bgeu"))
        over = 4 * source.randint(1, len(body) - at + 1)
        body.insert(at, i(name, rs1=source.choice(FREE), rs2=source.choice((0, *FREE)), imm=over))
    return body


def random_immediate(source: random.Random, field: Field) -> int:
    value = sum(source.choice((0, 1, (1 << n) - 1, source.getrandbits(n))) << at for _, n, at in field.pieces)
    top = max(n + at for _, n, at in field.pieces)
    return value - (1 << top) if field.signed and value >> (top - 1) else value


def write_loop(bare: Bare, body: list[Instruction], steps: tuple[int, int], head: int = HEAD) -> None:
    """The loop: body, base registers moved on, counted down; an ebreak behind."""
    ahead = [i("addi", rd=base, rs1=base, imm=step) for base, step in zip(BASES, steps, strict=True)]
    whole = [*body, *ahead, i("addi", rd=COUNT, rs1=COUNT, imm=-1)]
    back = i("bne", rs1=COUNT, rs2=0, imm=-4 * len(whole))
    bare.put(head, *whole, back, i("ebreak"), i("ebreak"))


State = tuple[list[int], int, int, int, bytes]


def outcome(bare: Bare, interpreted: bool, seed: str, count: int, head: int = HEAD) -> State:
    """Run the loop from a state that the seed gives: registers, instructions retired, cause, pc, data."""
    source = random.Random(seed)
    h = bare.h
    for number in range(1, 32):
        h.x[number] = source.choice((source.getrandbits(64), source.getrandbits(8), 0, (1 << 64) - 1))
    h.x[COUNT], h.x[8], h.x[9] = count, DATA + 4096 + source.choice((0, 8, 4000)), DATA + 8192 + source.choice((0, 4))
    bare.poke(DATA, source.randbytes(0x8000).ljust(DATA_BYTES, b"\0"))
    h.pc, before, traps = head, h.instret, h.traps
    machine().log |= 1  # with -d int translated code, too, leaves at each trap
    while h.traps == traps:
        if interpreted:
            run_quantum(h, 500)
        elif not run_translated(h, 500):
            run_quantum(h, 1)
    return list(h.x[:32]), h.instret - before, h.mcause, h.mepc, bare.peek(DATA, DATA_BYTES)
