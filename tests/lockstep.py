"""The interpreter against the living definition: random programs from the rows, run on both, everything compared.

A program lies in pages that may be executed and read, its data in pages that may be read and written; all else is
denied by PMP, so that both machines see the same memory.  Registers 2, 8, 9 and 20 to 23 point into the data, 10 and
24 into the program; instructions rarely write those.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bare import RAM_BASE, Bare, Trapped, encode, i

from mem.machine import machine
from mem.reservation import drop
from mem.word import MASK64, W
from smp.cpu import EXT_F
from smp.definition import READ_ONLY, Cause, Definition, Trap
from smp.fpformat import D, Format, H, S
from smp.hart import FS, MACHINE, USER
from smp.row import ROWS, Kind, Row
from smp.rows import find

PAGE = 4096
CODE, CODE_BYTES = RAM_BASE, 4 * PAGE
DATA, DATA_BYTES = RAM_BASE + 4 * PAGE, 4 * PAGE
WINDOW_LIMIT = 16
INTERESTING = (0, 1, MASK64, 1 << 63, (1 << 63) - 1, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF, 0x100000000)
DATA_POINTERS, CODE_POINTERS = (2, 8, 9, 20, 21, 22, 23), (10, 24)
FREE = [n for n in range(32) if n not in DATA_POINTERS + CODE_POINTERS]
ACCESSES = (Kind.LOAD, Kind.STORE, Kind.FLOAD, Kind.FSTORE, Kind.AMO, Kind.LR, Kind.SC, Kind.CAS)
PRIVILEGED = ("mret", "sret", "wfi", "sfence.vma", "sinval.vma", "sfence.w.inval", "sfence.inval.ir")
TIME = 0xC01


class Twin(Definition):
    """The definition with this module's memory, and with the freedom that the manual leaves to SC as it is used."""

    def __init__(self, memory: bytearray, pc: int, extensions: int, translated: bool = False) -> None:
        super().__init__(memory, RAM_BASE, pc, extensions)
        self.translated = translated
        self.watched: set[int] = set()  # LRs that no longer open a constrained sequence
        self.window: tuple[int, int, set[int]] | None = None  # LR, SC, and where instructions of it begin
        self.stray = False
        self.reserved = (0, 0)  # address and value

    def _offset(self, address: int, size: int, cause: Cause) -> int:
        offset = super()._offset(address, size, cause)
        block = self.word & 0x707F == 0x200F and self.word >> 20 != 4  # cbo but zero: whoever may load may do it
        code = offset < CODE_BYTES
        allowed = {Cause.FETCH_ACCESS: code, Cause.STORE_ACCESS: not code or block}.get(cause, True)
        if not allowed or code != (offset + size <= CODE_BYTES):
            raise Trap(cause, int(address))
        return offset

    # An LR is constrained when only register arithmetic and branches lie before its SC (smp/lrsc.py); where code is
    # translated, all those branches must lead out.

    def _lr(self, row: Row, o: Any) -> None:
        address = int(self.x[o["rs1"]])
        super()._lr(row, o)
        self.stray = False
        self.window = None if self.pc in self.watched else self._sequence(row.size)
        self.reserved = (address, self._read(address, row.size, Cause.LOAD_ACCESS))

    def _sequence(self, size: int) -> tuple[int, int, set[int]] | None:
        at, begins = self.pc + 4, {self.pc}
        targets: set[int] = set()
        if self.pc % PAGE == PAGE - 2:
            return None
        for _ in range(WINDOW_LIMIT):
            if at // PAGE != self.pc // PAGE or at % PAGE == PAGE - 2:
                return None
            word = self._read(at, 2, Cause.FETCH_ACCESS)
            word |= self._read(at + 2, 2, Cause.FETCH_ACCESS) << 16 if word & 3 == 3 else 0
            row = find(word, self.extensions)
            if row is None:
                return None
            begins.add(at)
            if row.kind is Kind.BRANCH:
                targets.add(at + row.operands(word)["imm"])
            if row.kind is Kind.SC:
                stays = self.translated and targets & begins
                return (self.pc, at, begins) if row.size == size and not stays else None
            if row.name.startswith("wrs"):
                return self.pc, -1, set()
            if row.kind not in (Kind.ALU, Kind.BRANCH):
                return None
            at += row.bits // 8
        return None

    def _branch(self, row: Row, o: Any) -> None:
        super()._branch(row, o)
        if self.window and self.window[1] > 0 and self.next_pc != self.pc + row.bits // 8:
            self.stray = self.stray or self.next_pc not in self.window[2]

    def _sc(self, row: Row, o: Any) -> None:
        address = self._aligned(self.x[o["rs1"]], row.size, Cause.STORE_MISALIGNED)
        self._offset(address, row.size, Cause.STORE_ACCESS)
        window, self.window = self.window, None
        if window is None:
            super()._sc(row, o)
            return
        if self.stray or self.pc != window[1]:
            self.watched.add(window[0])
            self.reservation = None
        elif self.reserved != (address, self._read(address, row.size, Cause.LOAD_ACCESS)):
            self.reservation = None
        super()._sc(row, o)

    def _read_csr(self, number: int) -> W:
        return W(0) if 0xC02 < number < 0xC20 else super()._read_csr(number)


# Programs


def integer(source: random.Random) -> int:
    if source.random() < 0.3:
        return source.choice(INTERESTING)
    return source.getrandbits(64) >> source.choice((0, 0, 0, 32, 58))


def floating(source: random.Random, fmt: Format | None = None) -> int:
    """Mostly a boxed value of the format, with exponents close enough to interact."""
    fmt = fmt or source.choice((H, S, S, D, D))
    if source.random() < 0.05:
        return source.getrandbits(64)
    edges = (0, 1, fmt.hidden_bit - 1, fmt.hidden_bit, fmt.half, fmt.one, fmt.infinity - 1, fmt.infinity,
             fmt.infinity | 1, fmt.nan)  # fmt: skip
    value = source.choice(edges)
    if source.random() < 0.75:
        near = fmt.bias + source.randint(-4, 4)
        exponent = source.choice((near, near, near, source.randrange(fmt.special)))
        value = exponent << fmt.fraction_bits | source.getrandbits(fmt.fraction_bits)
    value |= source.getrandbits(1) * fmt.sign_bit
    return value | MASK64 & -1 << fmt.bits


@dataclass
class Program:
    """Machine code at `pc`, and the state that it starts in."""

    pc: int
    code: bytes
    x: list[int]
    f: list[int]
    fcsr: int
    data: bytes
    privilege: int = USER
    words: list[int] = field(default_factory=list)


def start_state(source: random.Random, pc: int, privilege: int) -> Program:
    x = [0] + [integer(source) for _ in range(31)]
    for number in DATA_POINTERS:
        x[number] = DATA + source.randrange(64, 240) * 64
    x[22] += source.randrange(8)
    x[23] = source.choice((DATA + PAGE, DATA + 2 * PAGE, DATA + DATA_BYTES)) - source.randrange(1, 16)
    for number in CODE_POINTERS:
        x[number] = pc + 2 * source.randrange(100)
    f = [floating(source) for _ in range(32)]
    fcsr = source.choice((0, 1, 2, 3, 4, 4, 3, 7)) << 5 | source.getrandbits(5)
    data = b"".join((floating(source) if n % 2 else integer(source)).to_bytes(8, "little") for n in range(64))
    return Program(pc, b"", x, f, fcsr, data * (DATA_BYTES // len(data)), privilege)


def random_word(source: random.Random, row: Row) -> int:
    """A word of the row, with operands that mostly do something."""
    while True:
        word = source.getrandbits(row.bits) & ~row.mask | row.match
        if not row.accepts(word):
            continue
        own = row.written(word)
        wanted = operands(source, row, own)
        try:
            return row.encode(**wanted)
        except ValueError:
            continue


def operands(source: random.Random, row: Row, own: dict[str, int]) -> dict[str, int]:
    """Fields in place of random ones: addresses that are data, results that leave the pointers alone."""
    prime = {name.rstrip("'") for name, f in row.fields.items() if f.prime}
    made = dict(own)

    def choose(name: str, numbers: Iterable[int]) -> None:
        fitting = [n for n in numbers if name not in prime or 8 <= n < 16]
        if name in made and fitting:
            made[name] = source.choice(fitting)

    floats = row.kind in (Kind.FLOAD, Kind.FP)
    if source.random() < 0.98 and not floats and row.kind not in (Kind.STORE, Kind.FSTORE, Kind.BRANCH):
        choose("rd", FREE)
        if "rd" not in made and row.kind is Kind.ALU:
            choose("rs1", FREE)
    if row.kind in (*ACCESSES, Kind.SYSTEM) and source.random() < 0.98:
        aligned = row.kind in (Kind.AMO, Kind.LR, Kind.SC, Kind.CAS)
        choose("rs1", DATA_POINTERS[:5] if aligned and source.random() < 0.97 else DATA_POINTERS)
        if row.kind in (Kind.LR, Kind.SC) and source.random() < 0.8:
            made["rs1"] = 8
    elif row.kind is Kind.JALR:
        choose("rs1", CODE_POINTERS)
        if "imm" in made:
            made["imm"] = source.randrange(0, 200) & ~1
    elif source.random() < 0.15:
        choose("rs2", [made.get("rs1", 5)])
    if source.random() < 0.1 and row.kind not in ACCESSES and not floats:
        choose("rd", [0, made["rs1"]] if made.get("rs1") in FREE else [0])
    if "csr" in made:
        made["csr"] = source.choice((1, 2, 3, 3, 0xC00, 0xC02))
        if made["csr"] > 3 and source.random() < 0.9 and row.name[:5] in ("csrrs", "csrrc"):
            made["rs1"] = 0
    if made.get("rm") in (5, 6) and source.random() < 0.95:
        made["rm"] = source.choice((0, 1, 2, 3, 4, 7, 7))
    return made


def candidates(privilege: int, extensions: int) -> list[Row]:
    """Rows that may occur: without traps on purpose, and without what only M-mode does there."""
    ends = ("ecall", "ebreak", "c.ebreak", *(PRIVILEGED if privilege == MACHINE else ()))
    return [row for row in ROWS.values() if row.name not in ends and row.enabled(extensions)]


def sequence(source: random.Random) -> list[Row]:
    """Rows of something like an LR/SC loop."""
    size = source.choice("wd")
    between = ("addi", "add", "c.addi", "xor", "c.mv", "beq", "bne", "c.bnez", "c.addi", "blt")
    rows = [ROWS[source.choice(between)] for _ in range(source.choice((0, 1, 2, 3, 5, 14)))]
    if source.random() < 0.2:
        rows.append(ROWS[source.choice(("ld", "sd", "jal", "amoadd.d", "wrs.sto", "lr.d"))])
    return [ROWS[f"lr.{size}"], *rows, ROWS[f"sc.{size if source.random() < 0.9 else 'd'}"], ROWS["bne"]]


def rows_of_program(source: random.Random, rows: list[Row], count: int) -> list[Row]:
    chosen: list[Row] = []
    by_kind = {kind: [row for row in rows if row.kind is kind] for kind in Kind}
    while len(chosen) < count:
        dice = source.random()
        if dice < 0.05 and by_kind[Kind.LR]:
            chosen += sequence(source)
        elif dice < 0.25:
            kind = source.choice((Kind.LOAD, Kind.STORE, Kind.FLOAD, Kind.FSTORE))
            chosen.append(source.choice(by_kind[kind] or rows))
        elif dice < 0.33:
            chosen.append(source.choice(by_kind[source.choice((Kind.BRANCH, Kind.BRANCH, Kind.JAL, Kind.JALR))]))
        elif dice < 0.55:
            chosen.append(source.choice(by_kind[Kind.ALU]))
        else:
            chosen.append(source.choice(rows))
    return chosen


def jump(source: random.Random, row: Row, number: int, begins: list[int]) -> int | None:
    """The immediate of a branch or jal to another instruction, mostly forward and near."""
    for _ in range(20):
        if source.random() < 0.75:
            target = source.randrange(number + 1, min(len(begins), number + 12))
        else:
            target = source.randrange(len(begins))
        imm = begins[target] - begins[number] + source.choice((0,) * 30 + (2,))
        reach = max(at + width for _, width, at in row.fields["imm"].pieces)
        if -1 << reach - 1 <= imm < 1 << reach - 1:
            return imm
    return None


def make(source: random.Random, rows: list[Row], privilege: int = USER, count: int = 60) -> Program:
    """A random program that ends with ebreak; it often lies across a page boundary."""
    chosen = rows_of_program(source, rows, count)
    sizes = [row.bits // 8 for row in chosen]
    offset = source.choice((0, PAGE, 2 * PAGE, 3 * PAGE)) - source.randrange(0, sum(sizes), 2)
    pc = CODE + max(offset, 0)
    begins = [pc + sum(sizes[:n]) for n in range(len(sizes) + 1)]
    words = []
    for number, row in enumerate(chosen):
        word = random_word(source, row)
        if row.kind in (Kind.BRANCH, Kind.JAL):
            imm = jump(source, row, number, begins)
            word = row.encode(**{**row.written(word), "imm": imm}) if imm else word
        elif source.random() < 0.003 and privilege == USER:
            word = tame(source.getrandbits(32) | 3 if row.bits == 32 else source.choice((0, 0x8000, 0x4002)))
        words.append(word)
    made = start_state(source, pc, privilege)
    words.append(ROWS["ebreak"].match)
    made.words, made.code = words, encode(*words)
    return made


def tame(word: int) -> int:
    """A random word, unless it reads a clock or a CSR that the definition does not have."""
    row = find(word)
    if row is not None and row.kind in (Kind.CSR, Kind.CSRI) and word >> 20 not in (1, 2, 3):
        return word & 0xFFFFF | 3 << 20
    return word


def single(source: random.Random, row: Row, privilege: int = USER) -> Program:
    """One instruction, sometimes at a page's end."""
    pc = CODE + source.choice((0, 64, PAGE - 2, PAGE - 4, 3 * PAGE - 2, 2 * PAGE + 6))
    made = start_state(source, pc, privilege)
    if row.kind is Kind.FP:
        made.f = [floating(source, row.fmt) for _ in range(32)]
    word = random_word(source, row)
    if row.kind in (Kind.BRANCH, Kind.JAL):
        word = row.encode(**{**row.written(word), "imm": row.bits // 8})
    made.words = [word, ROWS["ebreak"].match]
    made.code = encode(*made.words)
    return made


# Running


@dataclass
class State:
    """What is compared."""

    pc: int
    trap: tuple[int, int] | None
    retired: int
    x: list[int]
    f: list[int]
    fflags: int
    frm: int
    memory: bytes


def napot(base: int, size: int) -> int:
    return base >> 2 | (size >> 3) - 1


def install(bare: Bare, program: Program) -> None:
    """Put the program and its state into the machine."""
    h = bare.h
    lock = 0x80 if program.privilege == MACHINE else 0
    bare.pmp(h, 0, 0x1D | lock, napot(CODE, CODE_BYTES))
    bare.pmp(h, 1, 0x1B | lock, napot(DATA, DATA_BYTES))
    bare.pmp(h, 2, 0x18 | lock, (1 << 54) - 1)
    h.mmu.menvcfg = h.senvcfg = 0xF0
    h.mcounteren = h.scounteren = 0xFFFFFFFF
    h.mstatus = FS if machine().extensions & EXT_F else 0
    bare.poke(CODE, bytes(CODE_BYTES))
    bare.poke(program.pc, program.code)
    bare.poke(DATA, program.data)
    h.x[:32], h.f[:] = program.x, program.f
    h.frm, h.fflags = program.fcsr >> 5, program.fcsr & 31
    h.instret, h.pc, h.reservation = 0, program.pc, 0
    bare.enter(program.privilege)
    bare.drop_translations()
    drop(h.id)  # a reservation of the program before
    bare.forget_code()


def run_interpreter(bare: Bare, program: Program, limit: int, quantum: int) -> State:
    """Run in quanta until a trap or `limit` instructions."""
    install(bare, program)
    h = bare.h
    trapped: Trapped | None = None
    while trapped is None and h.instret < limit:
        trapped = bare.step(quantum)
    trap = (trapped.cause, trapped.tval) if trapped else None
    pc = trapped.pc if trapped else h.pc
    memory = bare.peek(CODE, CODE_BYTES + DATA_BYTES)
    return State(pc, trap, h.instret, list(h.x)[:32], list(h.f), h.fflags, h.frm, memory)


def run_definition(program: Program, extensions: int, retired: int, translated: bool) -> tuple[Twin, State]:
    """Run as many instructions, and one more that has to trap if the interpreter's did."""
    memory = bytearray(CODE_BYTES + DATA_BYTES)
    memory[program.pc - CODE : program.pc - CODE + len(program.code)] = program.code
    memory[CODE_BYTES:] = program.data
    twin = Twin(memory, program.pc, extensions, translated)
    twin.x, twin.f = [W(v) for v in program.x], [W(v) for v in program.f]
    twin.frm, twin.fflags = program.fcsr >> 5, program.fcsr & 31
    trap = twin.run(retired)
    return twin, state_of(twin, trap, program)


def state_of(twin: Twin, trap: Trap | None, program: Program) -> State:
    cause = None
    if trap:
        number = int(trap.cause) + (program.privilege if trap.cause is Cause.ECALL_U else 0)
        cause = (number, int(trap.tval) & MASK64)
    x, f = [int(v) for v in twin.x], [int(v) for v in twin.f]
    return State(twin.pc, cause, twin.retired, x, f, twin.fflags, twin.frm, bytes(twin.memory))


def same_trap(ours: tuple[int, int] | None, theirs: tuple[int, int] | None) -> bool:
    """A misaligned access may name the part of it that faulted."""
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return ours == theirs
    access = ours[0] in (Cause.LOAD_ACCESS, Cause.STORE_ACCESS)
    return ours[1] == theirs[1] or (access and 0 < ours[1] - theirs[1] < 8 and ours[1] % PAGE == 0)


def differences(ours: State, theirs: State) -> list[str]:
    """What is not as defined, a line each."""
    found = []
    if not same_trap(ours.trap, theirs.trap):
        found.append(f"trap {ours.trap}, should be {theirs.trap}")
    for name in ("pc", "retired", "fflags", "frm"):
        if getattr(ours, name) != getattr(theirs, name):
            found.append(f"{name} {getattr(ours, name):#x}, should be {getattr(theirs, name):#x}")
    for name in ("x", "f"):
        pairs = zip(getattr(ours, name), getattr(theirs, name), strict=True)
        found += [f"{name}{n} {a:#x}, should be {b:#x}" for n, (a, b) in enumerate(pairs) if a != b]
    if ours.memory != theirs.memory:
        at = next(n for n, (a, b) in enumerate(zip(ours.memory, theirs.memory, strict=True)) if a != b)
        at &= ~7
        found.append(f"memory at {CODE + at:#x} {ours.memory[at : at + 8].hex()}, "
                     f"should be {theirs.memory[at : at + 8].hex()}")  # fmt: skip
    return found


def compare(bare: Bare, program: Program, extensions: int, limit: int = 1000, quantum: int = 1000) -> tuple[int, str]:
    """Run on both; gives the instructions compared and a description of what differs, or ''."""
    ours = run_interpreter(bare, program, limit, quantum)
    wanted = ours.retired + (ours.trap is not None)
    _, theirs = run_definition(program, extensions, wanted, bare.config.engine == "jit")
    return ours.retired, "\n".join(differences(ours, theirs))


__all__ = ["CODE", "DATA", "PRIVILEGED", "READ_ONLY", "Program", "candidates", "compare", "i", "make", "single"]
