"""The interpreter: a handler for each row, generated from the row's kind and meaning.

A handler is a function of four words held in host registers: the hart record, the slot of the instruction,
instructions left of the quantum, and `delta` with pc = slot / 8 + delta.  It does its work and jumps to the next
slot's handler (a guaranteed tail call).  A chain of handlers ends by storing pc and returning: after a trap, when
the alarm rings or the quantum is used up (looked at on taken jumps), when a page of code is not at hand, and
after instructions that change what must be looked at.  Rare paths are functions of their own, so that the common
ones need no stack frame.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from mem.atomics import atomic_rmw
from mem.mmu import atomic_address, read_slow, write_slow
from mem.native import Unit, call, emitted, load, native, store, unit
from mem.regions import HOST
from mem.tlb import PAGE_MASK, TLB_ENTRIES, WRITE, WRITE_BANK, Mmu
from mem.word import I64, V, builder, const, select, sext8, sext16, sext32
from smp.code import DECODE, ILLEGAL_HANDLER, PAGE_END, SLOT, SPECIAL_HANDLERS, STEP_END, STRADDLE, enter, second_half
from smp.csr import csr_base, csr_check, csr_read, csr_write
from smp.decode import CONSTRAINED_LR, HANDLERS, NEAR, WATCHED_LR, WINDOW, decode_slot, decode_straddling
from smp.fpu_native import NativeFpu
from smp.handler import CAUSE, DATA, HANDLER_TYPE, LEFT, MMU, PC, Ops, branch_to, emit_into, new_handler
from smp.hart import CONSTRAINED, FS, NOTHING, STRAY, Hart
from smp.lrsc import (
    begin_locked,
    compare_and_swap,
    compare_and_swap_pair,
    end_locked,
    load_reserved,
    never_fuse,
    store_conditional,
)
from smp.row import ROWS, Kind, Row
from smp.system import ACTIONS, FAULT, NEXT, illegal
from smp.trap import take_fault

RMW = {"amoswap": "xchg", "amoadd": "add", "amoxor": "xor", "amoand": "and", "amoor": "or", "amomin": "min",
       "amomax": "max", "amominu": "umin", "amomaxu": "umax"}  # fmt: skip


def probe(ops: Ops, address: V, size: int, write: bool) -> tuple[Any, V]:
    """Look an access up in the data TLB: whether it may go straight to memory, and where."""
    entry = ops.get(DATA) + ((address >> 12) & (TLB_ENTRIES - 1)) * 16 + (WRITE_BANK if write else 0)
    hit = load(entry, 8) == (address & (PAGE_MASK | size - 1))
    return hit, address + load(entry + 8, 8)


def operand(ops: Ops, row: Row, name: str) -> Any:
    """A meaning's operand by its parameter's name."""
    if name in ("rs1", "rs2", "rs3"):
        return ops.x(name)
    if name in ("fs1", "fs2", "fs3"):
        return unbox(ops.f("r" + name[1:]), row.fmt)
    if name == "imm":
        return ops.imm()
    if name == "pc":
        return ops.pc()
    raise ValueError(f"{row.name}: a meaning of this kind can't take {name!r}")


def emit_alu(ops: Ops, row: Row) -> None:
    assert row.meaning
    ops.set_x(row.meaning(*[operand(ops, row, n) for n in row.parameters()]))
    ops.next()


def emit_load(ops: Ops, row: Row) -> None:
    """Integer and floating-point loads."""
    assert row.meaning
    put = ops.set_x if row.kind is Kind.LOAD else ops.set_f
    if row.kind is Kind.FLOAD:
        need_fp(ops, dirty=True)
    address = ops.x("rs1") + ops.imm()
    hit, host = probe(ops, address, row.size, write=False)
    fast, slow = branch_to(hit)
    builder().position_at_end(fast)
    put(row.meaning(load(host, row.size)))
    ops.next()
    builder().position_at_end(slow)

    def missed(rare: Ops) -> None:
        rare.put(LEFT, rare.left)
        value = call(read_slow, rare.hart + MMU, rare.x("rs1") + rare.imm(), row.size)
        rare.unless_fault()
        (rare.set_x if row.kind is Kind.LOAD else rare.set_f)(row.meaning(value))  # type: ignore[misc]
        rare.next_heeding()

    ops.cold("slow", missed)


def emit_store(ops: Ops, row: Row) -> None:
    """Integer and floating-point stores."""

    def value(at: Ops) -> V:
        return at.x("rs2") if row.kind is Kind.STORE else at.f("rs2")

    if row.kind is Kind.FSTORE:
        need_fp(ops, dirty=False)
    address = ops.x("rs1") + ops.imm()
    hit, host = probe(ops, address, row.size, write=True)
    fast, slow = branch_to(hit)
    builder().position_at_end(fast)
    store(host, value(ops), row.size)
    ops.next()
    builder().position_at_end(slow)

    def missed(rare: Ops) -> None:
        rare.put(LEFT, rare.left)
        call(write_slow, rare.hart + MMU, rare.x("rs1") + rare.imm(), row.size, value(rare))
        rare.unless_fault()
        rare.next_heeding()

    ops.cold("slow", missed)


def emit_branch(ops: Ops, row: Row, variant: int) -> None:
    assert row.meaning
    taken, other = branch_to(row.meaning(*[operand(ops, row, n) for n in row.parameters()]))
    builder().position_at_end(other)
    ops.next()
    builder().position_at_end(taken)
    if variant == NEAR:
        ops.jump_near(ops.slot + ops.imm() * (SLOT // 2))
        return
    if variant == WINDOW:
        held = ops.get(Hart.offset("reservation"))
        ops.put(Hart.offset("reservation"), select(held == CONSTRAINED, STRAY, held))
    target = ops.pc() + ops.imm()
    check_target(ops, target)
    ops.jump(target)


def check_target(ops: Ops, target: V) -> None:
    """Without C a target that is not a multiple of 4 traps at the jump."""
    good, bad = branch_to(target & ops.get(Hart.offset("misaligned")) == 0)
    builder().position_at_end(bad)
    ops.put(CAUSE, 0)
    ops.put(MMU + Mmu.offset("tval"), target)
    ops.trap()
    builder().position_at_end(good)


def emit_jal(ops: Ops, row: Row, variant: int) -> None:
    if variant == NEAR:
        ops.set_x(ops.pc() + ops.length)
        ops.jump_near(ops.slot + ops.imm() * (SLOT // 2))
        return
    target = ops.pc() + ops.imm()
    check_target(ops, target)
    ops.set_x(ops.pc() + ops.length)
    ops.jump(target)


def emit_jalr(ops: Ops, row: Row) -> None:
    target = (ops.x("rs1") + ops.imm()) & ~1
    check_target(ops, target)
    ops.set_x(ops.pc() + ops.length)
    ops.jump(target)


SEXT = {1: sext8, 2: sext16, 4: sext32, 8: lambda a: a}


def emit_amo(ops: Ops, row: Row) -> None:
    """One host read-modify-write; on a watched page under the lock."""
    operation = RMW[row.name.split(".")[0]]
    address, source = ops.x("rs1"), ops.x("rs2")
    hit, host = probe(ops, address, row.size, write=True)
    fast, slow = branch_to(hit)
    builder().position_at_end(fast)
    ops.set_x(SEXT[row.size](atomic_rmw(operation, host, source, row.size)))
    ops.next()
    builder().position_at_end(slow)

    def missed(rare: Ops) -> None:
        rare.put(LEFT, rare.left)
        pa = call(atomic_address, rare.hart + MMU, rare.x("rs1"), row.size, WRITE)
        rare.unless_fault()
        locked = call(begin_locked, rare.hart, pa)
        old = atomic_rmw(operation, pa + HOST, rare.x("rs2"), row.size)
        call(end_locked, rare.hart, pa, row.size, locked)
        rare.set_x(SEXT[row.size](old))
        rare.next()

    ops.cold("slow", missed)


def emit_lr(ops: Ops, row: Row, variant: int) -> None:
    assert row.meaning
    ops.put(LEFT, ops.left)
    ops.put(Hart.offset("slot"), ops.slot)
    sc_pc = ops.pc() + ops.imm() if variant == CONSTRAINED_LR else 0
    flushes = ops.get(Hart.offset("code_flushes"))
    value = call(load_reserved, ops.hart, ops.x("rs1"), row.size, sc_pc)
    ops.unless_fault()
    ops.set_x(row.meaning(value))
    if variant == WATCHED_LR:
        # It may have answered other harts while it waited for them (smp/alarm.py:answer).
        same, flushed = branch_to(ops.get(Hart.offset("code_flushes")) == flushes)
        builder().position_at_end(flushed)
        ops.leave(ops.pc() + ops.length, ops.left - 1)
        builder().position_at_end(same)
    ops.next()


def emit_sc(ops: Ops, row: Row) -> None:
    """An SC that no constrained LR led to makes that LR a watched one."""
    ops.put(LEFT, ops.left)
    failed = call(store_conditional, ops.hart, ops.x("rs1"), row.size, ops.x("rs2"), ops.pc())
    ops.unless_fault()
    ops.set_x(failed)
    reservation = ops.get(Hart.offset("reservation"))
    usual, stray = branch_to(reservation != STRAY)
    builder().position_at_end(stray)
    call(watch_from_now, ops.hart)
    ops.next()
    builder().position_at_end(usual)
    ops.next()


@emitted
def watch_from_now(h: Hart) -> None:
    """Make the LR in `h.reserved_lr` one that is watched: both sizes have the same handlers' distance."""
    hart = h.address  # type: ignore[attr-defined]
    store(hart + Hart.offset("reservation"), NOTHING, 8)
    slot = load(hart + Hart.offset("reserved_lr"), 8)
    for name in ("lr.w", "lr.d"):
        constrained = handler_table(const_index(HANDLERS[(name, 4, CONSTRAINED_LR)]))
        watched = handler_table(const_index(HANDLERS[(name, 4, WATCHED_LR)]))
        current = load(slot, 8)
        store(slot, select(current == constrained, watched, current), 8)
    call(never_fuse, slot)


def const_index(index: int) -> V:
    return V(const(index))


def emit_cas(ops: Ops, row: Row) -> None:
    ops.put(LEFT, ops.left)
    if row.size == 16:
        call(compare_and_swap_pair, ops.hart, ops.x("rs1"), ops.number("rd"), ops.number("rs2"))
    else:
        call(compare_and_swap, ops.hart, ops.x("rs1"), row.size, ops.number("rd"), ops.number("rs2"))
    ops.unless_fault()
    ops.next()


def raise_illegal(ops: Ops) -> None:
    """Trap with an illegal-instruction exception."""
    ops.put(Hart.offset("slot"), ops.slot)
    call(illegal, ops.hart)
    ops.trap()


def emit_csr(ops: Ops, row: Row) -> None:
    """csrrw to x0 does not read; csrrs and csrrc of x0 (or of 0) do not write."""
    assert row.meaning
    ops.put(LEFT, ops.left)
    number = ops.imm() & 0xFFF
    swaps = row.name.startswith("csrrw")
    writes: Any = 1 if swaps else ops.number("rs1") != 0
    allowed, refused = branch_to(call(csr_check, ops.hart, number, writes) != 0)
    builder().position_at_end(refused)
    raise_illegal(ops)
    builder().position_at_end(allowed)
    source = ops.x("rs1") if row.kind is Kind.CSR else ops.number("rs1")
    old = call(csr_read, ops.hart, number)
    ops.set_x(old)
    base = old if swaps else call(csr_base, ops.hart, number, old)
    if swaps:
        changed = call(csr_write, ops.hart, number, row.meaning(base, source))
    else:
        changed = write_if(ops, writes, number, row.meaning(base, source))
    go, stop = branch_to(changed == 0)
    builder().position_at_end(stop)
    ops.leave(ops.pc() + 4, ops.left - 1)
    builder().position_at_end(go)
    ops.next()


def write_if(ops: Ops, writes: Any, number: V, value: Any) -> V:
    """Write a CSR when the instruction does; gives csr_write's answer or 0."""
    b = builder()
    before = b.block
    yes, no = branch_to(writes)
    b.position_at_end(yes)
    changed = call(csr_write, ops.hart, number, value)
    b.branch(no)
    b.position_at_end(no)
    phi = b.phi(I64)
    phi.add_incoming(const(0), before)
    phi.add_incoming(changed.v, yes)
    return V(phi)


# Floating point


def need_fp(ops: Ops, dirty: bool) -> None:
    """Illegal when mstatus.FS is off; the state becomes dirty when the instruction changes it."""
    status = ops.get(Hart.offset("mstatus"))
    on, off = branch_to(status & FS != 0)
    builder().position_at_end(off)
    ops.cold("off", raise_illegal)
    builder().position_at_end(on)
    if dirty:
        ops.put(Hart.offset("mstatus"), status | FS)


def unbox(value: V, fmt: Any) -> V:
    """A register as a value of a format: one that is not NaN-boxed reads as the canonical NaN."""
    if fmt is None or fmt.bits == 64:
        return value
    ones = (1 << 64) - (1 << fmt.bits)
    boxed = (value & ones) == ones
    return select(boxed, value & ((1 << fmt.bits) - 1), fmt.nan)


def box(value: Any, fmt: Any) -> Any:
    """A format's value as a register: NaN-boxed."""
    return value if fmt.bits == 64 else value | (1 << 64) - (1 << fmt.bits)


def rounding_mode(ops: Ops) -> V:
    """The instruction's rounding mode, or frm's; a reserved one is illegal."""
    field = ops.imm() & 7
    mode = select(field == 7, ops.get(Hart.offset("frm")), field)
    good, bad = branch_to(mode < 5)
    builder().position_at_end(bad)
    ops.cold("rm", raise_illegal)
    builder().position_at_end(good)
    return mode


def emit_fp(ops: Ops, row: Row) -> None:
    assert row.meaning
    need_fp(ops, dirty=True)
    mode = rounding_mode(ops) if row.rounds else V(const(0))
    fpu = NativeFpu(mode, ops.hart + Hart.offset("fflags"))
    words = [fpu if n == "fpu" else operand(ops, row, n) for n in row.parameters()]
    result = row.meaning(*words)
    if row.to is None:
        ops.set_x(result)
    else:
        ops.set_f(box(result, row.to))
    ops.next()


# System


def emit_system(ops: Ops, row: Row) -> None:
    """Call the row's action and do as it says."""
    ops.put(PC, ops.pc())
    ops.put(LEFT, ops.left)
    ops.put(Hart.offset("slot"), ops.slot)
    numbers = [ops.number(m) for m in ("rd", "rs1", "rs2")]
    outcome = call(ACTIONS[row.name], ops.hart, *numbers, ops.imm())
    go, other = branch_to(outcome == NEXT)
    builder().position_at_end(go)
    ops.next()
    builder().position_at_end(other)
    bad, out = branch_to(outcome == FAULT, likely=False)
    builder().position_at_end(bad)
    ops.trap()
    builder().position_at_end(out)
    ops.put(LEFT, ops.left - 1)
    builder().ret_void()


PLAIN: dict[Kind, Callable[[Ops, Row], None]] = {
    Kind.ALU: emit_alu,
    Kind.LOAD: emit_load,
    Kind.STORE: emit_store,
    Kind.FLOAD: emit_load,
    Kind.FSTORE: emit_store,
    Kind.JALR: emit_jalr,
    Kind.AMO: emit_amo,
    Kind.SC: emit_sc,
    Kind.CAS: emit_cas,
    Kind.CSR: emit_csr,
    Kind.CSRI: emit_csr,
    Kind.FP: emit_fp,
    Kind.SYSTEM: emit_system,
}
VARIED: dict[Kind, Callable[[Ops, Row, int], None]] = {
    Kind.BRANCH: emit_branch,
    Kind.JAL: emit_jal,
    Kind.LR: emit_lr,
}


# Special handlers


def emit_decode(ops: Ops) -> None:
    """First time at a slot: decode it, then run it."""
    handler = call(decode_slot, ops.hart, ops.slot, ops.pc())
    ops.tail(builder().inttoptr(handler.v, HANDLER_TYPE.as_pointer()), ops.slot, ops.left, ops.delta)


def emit_page_end(ops: Ops) -> None:
    """Behind the last instruction of a page."""
    ops.jump(ops.pc(), retired=0)


def emit_straddle(ops: Ops) -> None:
    """An instruction whose second half lies on the next page."""
    high = call(second_half, ops.hart, ops.pc() + 2)
    ops.unless_fault()
    handler = call(decode_straddling, ops.hart, ops.slot, ops.pc(), high)
    ops.tail(builder().inttoptr(handler.v, HANDLER_TYPE.as_pointer()), ops.slot, ops.left, ops.delta)


def emit_step_end(ops: Ops) -> None:
    """Behind a single instruction that translated code had executed."""
    ops.put(Hart.offset("stepped"), 1)
    ops.leave(ops.pc(), ops.left)


SPECIAL = {
    DECODE: emit_decode,
    PAGE_END: emit_page_end,
    STRADDLE: emit_straddle,
    STEP_END: emit_step_end,
    ILLEGAL_HANDLER: raise_illegal,
}


def emit_handler(ops: Ops, row: Row, variant: int) -> None:
    """The handler of a row."""
    if row.kind in VARIED:
        VARIED[row.kind](ops, row, variant)
    else:
        PLAIN[row.kind](ops, row)


TABLE = "handlers"


def handler_table(index: Any) -> V:
    """Emit a look-up of a handler's host address; the table and all handlers are made on first use."""
    if TABLE not in unit().functions:
        _build_table(unit())
    base = V(builder().ptrtoint(unit().functions[TABLE], I64))
    return load(base + index * 8, 8)


def _build_table(target: Unit) -> None:
    names = [new_handler(f"special{i}") for i in range(SPECIAL_HANDLERS)]
    rows = [new_handler(f"op.{name}.{length}.{variant}") for name, length, variant in HANDLERS]
    kind = ir.ArrayType(I64, len(names) + len(rows))
    made = ir.GlobalVariable(target.module, kind, TABLE)
    made.linkage, made.global_constant = "internal", True
    made.initializer = ir.Constant(kind, [f.ptrtoint(I64) for f in names + rows])
    target.functions[TABLE] = made
    for index, body in SPECIAL.items():
        emit_into(names[index], 4, body)
    for (name, length, variant), function in zip(HANDLERS, rows, strict=True):
        row = ROWS[name]
        emit_into(function, length, lambda ops, r=row, v=variant: emit_handler(ops, r, v))  # type: ignore[misc]


@emitted
def run_slot(h: Hart, slot: int) -> None:
    """Run a chain of handlers from this slot on; `h.pc` and `h.left` are up to date before and after."""
    hart: V = h.address  # type: ignore[attr-defined]
    first: V = slot  # type: ignore[assignment]
    delta = load(hart + PC, 8) - (first >> 3)
    function = builder().inttoptr(load(first, 8).v, HANDLER_TYPE.as_pointer())
    builder().call(function, [hart.v, first.v, load(hart + LEFT, 8).v, delta.v])


@native
def run_quantum(h: Hart, quantum: int) -> None:
    """Run about `quantum` instructions from `h.pc` on, less if something turns up."""
    h.left = quantum
    h.quantum = quantum
    slot = enter(h)
    if slot:
        run_slot(h, slot)
    else:
        take_fault(h, h.pc)
    h.instret += quantum - h.left
    h.quantum = 0
    h.left = 0
