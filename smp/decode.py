"""Decoding: from an instruction word to a slot, driven by tables made from the rows."""

import itertools
from collections.abc import Iterator
from typing import Any

import smp.rows  # noqa: F401  (declares all rows)
from mem.atomics import load16
from mem.native import call, emitted, native, store, table
from mem.word import I64, V, builder, const, raw, sext32, sra
from smp.code import ILLEGAL_HANDLER, SPECIAL_HANDLERS, STRADDLE, Slot, extensions, handler_of, slot_text
from smp.hart import SINK, Hart
from smp.row import ROWS, Field, Kind, Row

LIST: list[Row] = list(ROWS.values())
NUMBER = {row.name: i for i, row in enumerate(LIST)}
NO_ROW = len(LIST)

# Kinds with several handlers: which one a slot gets is decided when it is decoded.
FAR, NEAR, WINDOW = range(3)  # BRANCH, JAL: the target lies on another page; on this one; out of a constrained LR/SC
WATCHED_LR, CONSTRAINED_LR = range(2)
VARIANTS = {Kind.BRANCH: 3, Kind.JAL: 2, Kind.LR: 2}
X_RESULT = (Kind.ALU, Kind.LOAD, Kind.JAL, Kind.JALR, Kind.AMO, Kind.LR, Kind.SC, Kind.CSR, Kind.CSRI)
WINDOW_LIMIT = 16  # instructions of a constrained LR/SC loop (unprivileged manual, "Eventual Success")


def handler_keys() -> Iterator[tuple[str, int, int]]:
    """All handlers in table order, after the special ones: (row that means it, instruction bytes, variant)."""
    seen = set()
    for row in LIST:
        for variant in range(VARIANTS.get(row.kind, 1)):
            key = (row.base or row.name, row.bits // 8, variant)
            if key not in seen:
                seen.add(key)
                yield key


HANDLERS = {key: SPECIAL_HANDLERS + i for i, key in enumerate(handler_keys())}
FIRST_HANDLER = [HANDLERS[(row.base or row.name, row.bits // 8, 0)] for row in LIST]


def has_x_result(row: Row) -> bool:
    return row.kind in X_RESULT or (row.kind is Kind.FP and row.to is None)


def row_bucket(word: int, bits: int) -> int:
    """Which of the lists of rows a word is looked up in."""
    if bits == 32:
        return (word >> 2 & 31) << 3 | (word >> 12 & 7)
    return 256 + ((word & 3) << 3 | word >> 13 & 7)


BUCKETS = 256 + 32
_INDEX_BITS = {32: 0x707C, 16: 0xE003}


def _buckets() -> list[list[int]]:
    """Which rows a word can be, by a few of its bits; the row with the most fixed bits first."""
    made: list[list[int]] = [[] for _ in range(BUCKETS)]
    for number, row in enumerate(LIST):
        free = _INDEX_BITS[row.bits] & ~row.mask
        chosen, subset = set(), free
        while True:
            chosen.add(row_bucket(row.match | subset, row.bits))
            if subset == 0:
                break
            subset = (subset - 1) & free
        for index in chosen:
            made[index].append(number)
    for rows in made:
        rows.sort(key=lambda n: -LIST[n].mask.bit_count())
    return made


_BY_BUCKET = _buckets()
_FLAT = [n for rows in _BY_BUCKET for n in rows]
_STARTS = list(itertools.accumulate((len(rows) for rows in _BY_BUCKET), initial=0))
BUCKET_START = table("u16", _STARTS)
BUCKET_ROWS = table("u16", _FLAT)
MASK = table("u32", [r.mask for r in LIST])
MATCH = table("u32", [r.match for r in LIST])
EXT_FIRST = table("u64", [r.ext[0] for r in LIST])
EXT_SECOND = table("u64", [r.ext[-1] for r in LIST])
KIND = table("u8", [r.kind.value for r in LIST])
HANDLER = table("u16", FIRST_HANDLER)
EXCLUDES = table("u8", [bool(r.excluded) for r in LIST])
assert all(len(r.ext) <= 2 for r in LIST)

K_BRANCH, K_JAL, K_LR, K_SC, K_ALU = (k.value for k in (Kind.BRANCH, Kind.JAL, Kind.LR, Kind.SC, Kind.ALU))
WAITS = (NUMBER["wrs.nto"], NUMBER["wrs.sto"])
FUNCT3 = 7 << 12  # of LR and SC: the size
NO_SC = 1  # "bytes to the SC" of an LR that only waits (wrs follows): no SC has an odd address


# A row's operands, as a recipe: what goes into each byte of the slot and into its immediate.
Recipe = tuple[tuple[str, Any], ...]


def _source(row: Row, operand: str) -> Any:
    """Where the base row's operand comes from: a Field, a constant, or None."""
    if row.base:
        name = row.fixed.get(operand)
        if not isinstance(name, str):
            return name
        return row.fields.get(name) or row.fields[name + "'"]
    return row.fields.get(operand)


def recipe(row: Row) -> Recipe:
    """Which slot member gets what; immediates, CSR numbers and rounding modes share `imm`."""
    parts: list[tuple[str, Any]] = []
    for member in ("rd", "rs1", "rs2", "rs3"):
        source = _source(row, member)
        if source is not None:
            sink = member == "rd" and has_x_result(row)
            parts.append((member + "!" if sink else member, source))
    for operand in ("imm", "csr", "rm"):
        source = _source(row, operand)
        if source is not None:
            parts.append(("imm", source))
            break
    return tuple(parts)


RECIPES: list[Recipe] = []
_RECIPE_OF: list[int] = []
for _row in LIST:
    _recipe = recipe(_row)
    if _recipe not in RECIPES:
        RECIPES.append(_recipe)
    _RECIPE_OF.append(RECIPES.index(_recipe))
RECIPE = table("u8", _RECIPE_OF)


def field_value(field: Field, word: V) -> Any:
    """Field.of, emitted."""
    value: Any = 0
    for low, width, at in field.pieces:
        value = value | ((word >> low) & ((1 << width) - 1)) << at
    if field.prime:
        return value + 8
    if field.signed:
        top = max(at + width for _, width, at in field.pieces)
        return sra(value << (64 - top), 64 - top)
    return value


def _member(slot: V, member: str, source: Any, word: V) -> None:
    value = field_value(source, word) if isinstance(source, Field) else source
    if member.endswith("!"):
        member = member[:-1]
        if isinstance(value, int):
            value = value or SINK
        else:
            value = V(builder().select((value == 0).v, const(SINK), raw(value)))
    store(slot + Slot.offset(member), value, 4 if member == "imm" else 1)


def emit_switch(index: V, count: int, arm: Any) -> V:
    """Emit a switch over 0..count-1; each arm's result (or 0) is the result."""
    b = builder()
    done = b.function.append_basic_block("done")
    default = b.function.append_basic_block("none")
    switch = b.switch(raw(index), default)
    results = [(const(0), default)]
    for number in range(count):
        block = b.function.append_basic_block(f"arm{number}")
        b.position_at_end(block)
        value = arm(number)
        if value is not NotImplemented:
            switch.add_case(const(number), block)
        results.append((raw(0 if value is None or value is NotImplemented else value), b.block))
        b.branch(done)
    b.position_at_end(default)
    b.branch(done)
    b.position_at_end(done)
    phi = b.phi(I64)
    for value, block in results:
        phi.add_incoming(value, block)
    return V(phi)


@emitted
def put_operands(number: int, word: int, slot: int) -> int:
    """Fill a slot's operands by the row's recipe."""

    def arm(n: int) -> None:
        for member, source in RECIPES[n]:
            _member(slot, member, source, word)  # type: ignore[arg-type]

    return emit_switch(call(recipe_of, number), len(RECIPES), arm)  # type: ignore[return-value]


@native
def recipe_of(number: int) -> int:
    return RECIPE[number]


EXCLUDING = [n for n, r in enumerate(LIST) if r.excluded]


@emitted
def is_excluded(number: int, word: int) -> int:
    """Whether a field has a value that the row refuses."""

    def arm(n: int) -> Any:
        row = LIST[EXCLUDING[n]]
        bad: Any = 0
        for name, values in row.excluded.items():
            value = field_value(row.fields[name], word)  # type: ignore[arg-type]
            for v in values:
                bad = (value == v) | bad
        return bad

    return emit_switch(call(excluding_of, number), len(EXCLUDING), arm)  # type: ignore[return-value]


_EXCLUDING_OF = table("u16", [EXCLUDING.index(n) if n in EXCLUDING else 0xFFFF for n in range(len(LIST))])


@native
def excluding_of(number: int) -> int:
    return _EXCLUDING_OF[number]


@native
def bucket_of(word: int) -> int:
    """The bucket of a word: quadrant, opcode and funct3."""
    if word & 3 == 3:
        return ((word >> 2) & 31) << 3 | (word >> 12) & 7
    return 256 + ((word & 3) << 3 | (word >> 13) & 7)


@native
def is_enabled(number: int) -> int:
    """Whether the machine has one of the row's extensions."""
    have = extensions()
    first = EXT_FIRST[number]
    second = EXT_SECOND[number]
    return have & first == first or have & second == second


@native
def find_row(word: int) -> int:
    """The row that a word is on this machine, or NO_ROW.  A 16-bit instruction has its upper half zero."""
    bucket = bucket_of(word)
    for i in range(BUCKET_START[bucket], BUCKET_START[bucket + 1]):
        number = BUCKET_ROWS[i]
        matches = word & MASK[number] == MATCH[number] and is_enabled(number)
        if matches and not (EXCLUDES[number] and is_excluded(number, word)):
            return number
    return NO_ROW


@native
def length_of(word: int) -> int:
    return 4 if word & 3 == 3 else 2


@native
def is_near(pc: int, imm: int) -> int:
    """Whether a jump's target is an instruction on the same page."""
    target = pc + imm
    return (target ^ pc) >> 12 == 0 and (imm & 2 == 0 or extensions() & 4 != 0)


@native
def word_at(text: int) -> int:
    """The instruction bits at a host address (in the copy of a page), not looking beyond its page."""
    low = load16(text)
    if low & 3 != 3 or text & 0xFFF == 0xFFE:
        return low
    return low | load16(text + 2) << 16


@native
def sequence_end(text: int) -> int:
    """Bytes from an LR to the SC that ends its constrained sequence, NO_SC if it ends in a wait, or 0.

    Only register arithmetic and conditional branches may lie between, all on one page, at most WINDOW_LIMIT.
    """
    at = text + 4
    for _ in range(WINDOW_LIMIT):
        if (at ^ text) >> 12 or at & 0xFFF == 0xFFE:
            return 0
        word = word_at(at)
        number = find_row(word)
        if number == NO_ROW:
            return 0
        kind = KIND[number]
        if kind == K_SC:
            # Of the LR's size: a narrower swap would not compare all that the LR has read.
            return 0 if (word ^ word_at(text)) & FUNCT3 else at - text
        if number == WAITS[0] or number == WAITS[1]:
            return NO_SC
        if kind != K_ALU and kind != K_BRANCH:
            return 0
        at += length_of(word)
    return 0


@native
def begins_in_window(text: int, length: int, target: int) -> int:
    """Whether an instruction of the constrained sequence, or its SC, begins `target` bytes behind the LR."""
    at = 0
    while at < length:
        if at == target:
            return 1
        at += length_of(word_at(text + at))
    return target == length


@native
def mark_window(slot: int, text: int, length: int) -> None:
    """Decode the branches of a constrained sequence so that one taken out of it ends it."""
    at = 4
    while at < length:
        word = word_at(text + at)
        number = find_row(word)
        if KIND[number] == K_BRANCH:
            inner = slot + at * 8
            put_operands(number, word, inner)
            stays = begins_in_window(text, length, at + sext32(Slot.at(inner).imm))
            Slot.at(inner).handler = handler_of(HANDLER[number] + (NEAR if stays else WINDOW))
        at += length_of(word)


@native
def decode_into(slot: int, word: int, pc: int, text: int) -> None:
    """Fill a slot from an instruction word; `text` is where it was read, 0 when it crosses a page."""
    s = Slot.at(slot)
    number = find_row(word)
    if number == NO_ROW:
        s.imm = word
        s.handler = handler_of(ILLEGAL_HANDLER)
        return
    put_operands(number, word, slot)
    handler = HANDLER[number]
    kind = KIND[number]
    if kind in (K_BRANCH, K_JAL):
        if text and is_near(pc, sext32(s.imm)):
            handler += NEAR
    elif kind == K_LR and text:
        length = sequence_end(text)
        if length:
            s.imm = length
            handler += CONSTRAINED_LR
            mark_window(slot, text, length)
    s.handler = handler_of(handler)


@native
def decode_slot(h: Hart, slot: int, pc: int) -> int:
    """Decode the instruction of a slot that runs for the first time; gives its handler."""
    text = slot_text(slot)
    low = load16(text)
    if low & 3 == 3 and text & 0xFFF == 0xFFE:
        Slot.at(slot).handler = handler_of(STRADDLE)
    else:
        decode_into(slot, word_at(text), pc, text)
    return Slot.at(slot).handler


@native
def decode_straddling(h: Hart, slot: int, pc: int, high: int) -> int:
    """Decode an instruction that crosses a page, anew each time: its second half may be another page's."""
    word = load16(slot_text(slot)) | high << 16
    h.straddle_word = word
    decode_into(slot, word, pc, 0)
    handler = Slot.at(slot).handler
    Slot.at(slot).handler = handler_of(STRADDLE)
    return handler
