"""What every handler of the interpreter is made of: its four words, its operands, and the ways it ends."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from mem.native import call, load, native, store, unit
from mem.tlb import NO_FAULT, PAGE_MASK, Mmu
from mem.word import I64, V, builder, emitting, inv, raw, sext32, truth
from smp.code import SLOT, Slot
from smp.hart import FETCH_ENTRIES, Hart
from smp.trap import take_fault

HANDLER_TYPE = ir.FunctionType(ir.VoidType(), [I64] * 4)
X, F = Hart.offset("x"), Hart.offset("f")
PC, LEFT, ALARM, FETCH = (Hart.offset(n) for n in ("pc", "left", "alarm", "fetch"))
MMU = Hart.offset("mmu")
DATA, CAUSE = MMU + Mmu.offset("data"), MMU + Mmu.offset("cause")


def branch_to(condition: Any, likely: bool = True) -> tuple[ir.Block, ir.Block]:
    """Emit a conditional branch; gives the blocks for true and false."""
    b = builder()
    yes, no = b.function.append_basic_block("yes"), b.function.append_basic_block("no")
    made = b.cbranch(truth(condition), yes, no)
    made.set_weights([2000, 1] if likely else [1, 2000])
    return yes, no


class Ops:
    """A handler while it is emitted: its four words, and what every handler does with them."""

    def __init__(self, function: ir.Function, length: int) -> None:
        self.function, self.length = function, length
        self.hart, self.slot, self.left, self.delta = (V(a) for a in function.args)

    def get(self, offset: int) -> V:
        """A word of the hart record."""
        return load(self.hart + offset, 8)

    def put(self, offset: int, value: Any) -> None:
        store(self.hart + offset, value, 8)

    def number(self, member: str) -> V:
        """A register number of the slot."""
        return load(self.slot + Slot.offset(member), 1)

    def imm(self) -> V:
        return sext32(load(self.slot + Slot.offset("imm"), 4))

    def x(self, member: str) -> V:
        return load(self.hart + X + self.number(member) * 8, 8)

    def set_x(self, value: Any) -> None:
        store(self.hart + X + self.number("rd") * 8, value, 8)

    def f(self, member: str) -> V:
        return load(self.hart + F + self.number(member) * 8, 8)

    def set_f(self, value: Any) -> None:
        store(self.hart + F + self.number("rd") * 8, value, 8)

    def pc(self) -> V:
        return (self.slot >> 3) + self.delta

    # Ends of a handler

    def tail(self, function: ir.Value, slot: Any, left: Any, delta: Any) -> None:
        """Go on in another handler with these words."""
        args = [raw(self.hart), raw(slot), raw(left), raw(delta)]
        builder().call(function, args, tail="musttail")
        builder().ret_void()

    def tail_slot(self, slot: Any, left: Any, delta: Any) -> None:
        """Go on with the instruction in a slot."""
        address = load(slot, 8)
        self.tail(builder().inttoptr(address.v, HANDLER_TYPE.as_pointer()), slot, left, delta)

    def next(self) -> None:
        """This instruction is retired; on to the one behind it."""
        self.tail_slot(self.slot + self.length * SLOT // 2, self.left - 1, self.delta)

    def next_heeding(self) -> None:
        """`next` after an access that may have waited for another process.

        Such a hart counts as asleep: whoever wanted its translations flushed did not wait for it, so the alarm
        comes before the next instruction.
        """
        quiet, rings = branch_to(load(self.get(ALARM), 4) == 0)
        builder().position_at_end(rings)
        self.leave(self.pc() + self.length, self.left - 1)
        builder().position_at_end(quiet)
        self.next()

    def leave(self, pc: Any, left: Any) -> None:
        """Back to the hart's loop, to go on at `pc`."""
        self.put(PC, pc)
        self.put(LEFT, left)
        builder().ret_void()

    def trap(self) -> None:
        """Take the exception left in `mmu.cause`; the instruction is not retired."""
        call(trap_out, self.hart, self.pc(), self.left)
        builder().ret_void()

    def unless_fault(self) -> None:
        """Trap if the last access set `mmu.cause`; else emission goes on."""
        fine, bad = branch_to(self.get(CAUSE) == NO_FAULT)
        builder().position_at_end(bad)
        self.trap()
        builder().position_at_end(fine)

    def cold(self, suffix: str, body: Callable[["Ops"], None]) -> None:
        """Go on in a function of its own for a rare path."""
        rare = new_handler(f"{self.function.name}.{suffix}")
        rare.attributes.add("noinline")
        rare.attributes.add("cold")
        emit_into(rare, self.length, body)
        self.tail(rare, self.slot, self.left, self.delta)

    def jump_near(self, slot: Any) -> None:
        """A taken jump inside the page: leave if the alarm rings or the quantum is used up."""
        left = self.left - 1
        quiet = load(self.get(ALARM), 4) == 0
        go, stop = branch_to(quiet & inv(ltu_signed(left)))
        builder().position_at_end(stop)
        self.leave((slot >> 3) + self.delta, left)
        builder().position_at_end(go)
        self.tail_slot(slot, left, self.delta)

    def jump(self, target: V, retired: int = 1) -> None:
        """A jump to anywhere: find the page's decoded code, or leave to have it made."""
        left = self.left - retired
        entry = self.get(FETCH) + ((target >> 12) & (FETCH_ENTRIES - 1)) * 16
        known = load(entry, 8) == (target & PAGE_MASK)
        quiet = load(self.get(ALARM), 4) == 0
        go, stop = branch_to(known & quiet & inv(ltu_signed(left)))
        builder().position_at_end(stop)
        self.leave(target, left)
        builder().position_at_end(go)
        slot = load(entry + 8, 8) + (target & 0xFFE) * (SLOT // 2)
        self.tail_slot(slot, left, target - (slot >> 3))


def ltu_signed(left: V) -> Any:
    """Whether no instruction is left."""
    return (left >> 63) != 0


@native
def trap_out(h: Hart, pc: int, left: int) -> None:
    """Take the exception in `mmu.cause` at `pc`."""
    h.left = left
    take_fault(h, pc)


def new_handler(name: str) -> ir.Function:
    made = ir.Function(unit().module, HANDLER_TYPE, name)
    made.linkage = "internal"
    made.attributes.add("nounwind")
    return made


def emit_into(function: ir.Function, length: int, body: Callable[[Ops], None]) -> None:
    """Emit a handler's body."""
    with emitting(ir.IRBuilder(function.append_basic_block("entry"))):
        body(Ops(function, length))
