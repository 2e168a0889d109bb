"""One row per instruction: its bits in the manual's order, its syntax, and what it means.

    row("addi", "imm[11:0] rs1 000 rd 0010011", "rd, rs1, imm", Kind.ALU, lambda rs1, imm: rs1 + imm, ext=EXT_I)

A pattern token is literal bits, a field with its usual width (rd, rs1, rs2, rs3: 5, rm: 3, csr: 12, aq, rl: 1,
pred, succ, fm: 4), a three-bit register of the compressed formats (rd', rs1', rs2': x8 to x15), or pieces of an
immediate as the manual draws them: `imm[12|10:5]` (sign-extended from its highest bit) or `uimm[5:3]`; both are
the operand `imm`.  A syntax names fields too: fd, fs1, fs2, fs3 are the floating-point registers of rd, rs1, rs2, rs3;
uimm, upper, target, zimm and fli are other ways to show an immediate, exact to show rm (smp/disassembler.py).
`rd!=0,2` and `imm!=0` (on any piece) restrict the row.  A meaning is a pure function; its parameters' names say
which operands it takes: rs1, rs2, rs3, imm, pc, rd (the old value), fs1.., value, old, src, fpu.  Effects belong
to the kind.  Everything else (living definition, interpreter, disassembler) is derived from the rows.
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class Kind(Enum):
    """What a row does besides computing; each kind's effect is written once per engine."""

    ALU = auto()  # rd = meaning(...)
    LOAD = auto()  # rd = meaning(value), value = memory[rs1 + imm], size bytes, zero-extended
    STORE = auto()  # memory[rs1 + imm] = rs2
    FLOAD = auto()  # fd = meaning(value)
    FSTORE = auto()  # memory[rs1 + imm] = fs2
    BRANCH = auto()  # pc += imm if meaning(rs1, rs2)
    JAL = auto()  # rd = next pc; pc += imm
    JALR = auto()  # rd = next pc; pc = rs1 + imm without bit 0
    AMO = auto()  # rd = sext(old); memory[rs1] = meaning(old, src): old and src sign-extended from size
    LR = auto()
    SC = auto()
    CAS = auto()  # Zacas: compares rd (pair), stores rs2 (pair), old value to rd (pair)
    CSR = auto()  # rd = csr; csr = meaning(old, src): src is rs1's value
    CSRI = auto()  # the same with src the five-bit immediate in rs1's place
    FP = auto()  # fd or rd = meaning(fpu, ...): operands unboxed from `fmt`, results boxed to `to`
    SYSTEM = auto()  # what the row's name says: privileged instructions, fences, cache blocks, hints


WIDTHS = {"rd": 5, "rs1": 5, "rs2": 5, "rs3": 5, "rm": 3, "csr": 12, "aq": 1, "rl": 1, "pred": 4, "succ": 4,
          "fm": 4, "rd'": 3, "rs1'": 3, "rs2'": 3}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """Where a field's bits lie: (lowest bit in the word, width, lowest bit in the value), and how it is read."""

    pieces: tuple[tuple[int, int, int], ...]
    signed: bool = False
    prime: bool = False  # three bits naming x8 to x15

    def of(self, word: int) -> int:
        """The field's value in an instruction word (immediates sign-extended)."""
        value = sum((word >> src & (1 << n) - 1) << dst for src, n, dst in self.pieces)
        if self.prime:
            return value + 8
        top = max(dst + n for _, n, dst in self.pieces)
        return value - (1 << top) if self.signed and value >> (top - 1) else value


@dataclass
class Row:
    """An instruction."""

    name: str
    pattern: str
    syntax: str
    kind: Kind
    meaning: Callable[..., Any] | None
    ext: tuple[int, ...]  # masks of smp/cpu.py: one of them must be on entirely
    size: int = 0  # bytes of a memory access
    fmt: Any = None  # operands' FP format
    to: Any = None  # result's FP format, None when the result goes to rd
    rounds: bool = False  # the rm field must name a rounding mode
    base: str = ""  # for compressed rows: the row that it abbreviates
    fixed: dict[str, Any] = field(default_factory=dict)  # base's field: own field's name, or a constant
    bits: int = 32
    mask: int = 0
    match: int = 0
    fields: dict[str, Field] = field(default_factory=dict)
    excluded: dict[str, tuple[int, ...]] = field(default_factory=dict)  # values that a field may not have

    def enabled(self, extensions: int) -> bool:
        """Whether a hart with these extensions has the instruction."""
        return any(mask & extensions == mask for mask in self.ext)

    def accepts(self, word: int) -> bool:
        """Whether the word is this instruction (extensions aside)."""
        if word & self.mask != self.match:
            return False
        return all(self.fields[name].of(word) not in bad for name, bad in self.excluded.items())

    def operands(self, word: int) -> dict[str, int]:
        """All fields of the word by name, primes dropped; for a compressed row, the base row's fields."""
        own = self.written(word)
        if not self.base:
            return own
        return {n: own[v] if isinstance(v, str) else v for n, v in self.fixed.items()}

    def written(self, word: int) -> dict[str, int]:
        """All fields of the word by name as the syntax shows them, primes dropped."""
        return {name.rstrip("'"): f.of(word) for name, f in self.fields.items()}

    def encode(self, **values: int) -> int:
        """The word with these fields (names as in `written`), 0 in all others; `ValueError` if that is another."""
        word = self.match
        for name, own in self.fields.items():
            value = values.get(name.rstrip("'"), 8 if own.prime else 0) - (8 if own.prime else 0)
            word |= sum((value >> dst & (1 << n) - 1) << src for src, n, dst in own.pieces)
        if not self.accepts(word) or any(self.written(word).get(name) != v for name, v in values.items()):
            raise ValueError(f"{self.name} can't have {values} ({self.pattern})")
        return word

    def parameters(self) -> tuple[str, ...]:
        """The operands that the meaning takes."""
        return _parameters(self.meaning) if self.meaning else ()


@functools.cache
def _parameters(meaning: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(meaning).parameters)


ROWS: dict[str, Row] = {}


def _parse(made: Row) -> None:
    """Read the pattern from the highest bit down."""
    sizes = [_token_width(t) for t in made.pattern.split()]
    made.bits = sum(sizes)
    if made.bits not in (16, 32):
        raise ValueError(f"{made.name}: the pattern has {made.bits} bits")
    position = made.bits
    pieces: dict[str, list[tuple[int, int, int]]] = {}
    for token, size in zip(made.pattern.split(), sizes, strict=True):
        position -= size
        _place(made, token, size, position, pieces)
    for name, parts in pieces.items():
        signed = name == "imm" and "uimm[" not in made.pattern
        made.fields[name] = Field(tuple(parts), signed, prime=name.endswith("'"))


def _is_fixed(body: str) -> bool:
    return not body.strip("01")


@functools.cache
def _token_width(token: str) -> int:
    body = token.split("!=")[0]
    if _is_fixed(body):
        return len(body)
    if body in WIDTHS:
        return WIDTHS[body]
    return sum(high - low + 1 for high, low in _ranges(body))


def _ranges(body: str) -> list[tuple[int, int]]:
    found = re.fullmatch(r"u?imm\[([\d:|]+)\]", body)
    if not found:
        raise ValueError(f"{body!r} is no field")
    parts = [p.split(":") for p in found[1].split("|")]
    return [(int(p[0]), int(p[-1])) for p in parts]


def _place(made: Row, token: str, size: int, low: int, pieces: dict[str, list[tuple[int, int, int]]]) -> None:
    body, _, excluded = token.partition("!=")
    if _is_fixed(body):
        made.mask |= ((1 << size) - 1) << low
        made.match |= int(body, 2) << low
        return
    name = body
    if name in WIDTHS:
        pieces[name] = [(low, size, 0)]
    else:
        name = "imm"
        at = low + size
        for high, end in _ranges(body):
            at -= high - end + 1
            pieces.setdefault(name, []).append((at, high - end + 1, end))
    if excluded:
        made.excluded[name] = tuple(int(v) for v in excluded.split(","))


def _extensions(ext: Any) -> tuple[int, ...]:
    return tuple(ext) if isinstance(ext, (tuple, list)) else (ext,)


def unlisted(name: str, pattern: str, syntax: str, kind: Kind, meaning: Any = None, *, ext: Any, **rest: Any) -> Row:
    """A row outside the table: another name for some words of a row in it."""
    made = Row(name, pattern, syntax, kind, meaning, _extensions(ext), **rest)
    _parse(made)
    return made


def row(name: str, pattern: str, syntax: str, kind: Kind, meaning: Any = None, *, ext: Any, **rest: Any) -> Row:
    """Declare an instruction."""
    if name in ROWS:
        raise ValueError(f"{name} is declared twice")
    made = ROWS[name] = unlisted(name, pattern, syntax, kind, meaning, ext=ext, **rest)
    return made


def compressed(name: str, pattern: str, syntax: str, base: str, *, ext: Any, **fixed: Any) -> Row:
    """Declare a 16-bit abbreviation: `fixed` gives each of the base row's fields an own field or a constant."""
    of = ROWS[base]
    same = {"size": of.size, "fmt": of.fmt, "to": of.to, "rounds": of.rounds}
    made = row(name, pattern, syntax, of.kind, of.meaning, ext=ext, base=base, fixed=fixed, **same)
    if missing := {n.rstrip("'") for n in of.fields} - set(fixed) - {"aq", "rl", "pred", "succ", "fm"}:
        raise ValueError(f"{name}: {base} also needs {sorted(missing)}")
    return made
