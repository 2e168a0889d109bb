"""Host code for a loop of guest code, by LLVM, from the rows' meanings.

The loop becomes one function of the hart record and of where to enter.  Registers live in LLVM's values from entry to
exit; a load or store remembers the page that the same base register last led to, and looks the TLB up only when that
changes.  The function leaves with all registers in the record, and gives the pc to go on at, or LEFT when the hart's
loop must look around.
Guest accesses are atomic (monotonic): LLVM neither drops, repeats nor splits them, nor moves them out of the loop.
"""

from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from mem.mmu import EMPTY, PAGE_MASK, TLB_ENTRIES, WRITE_BANK, Mmu
from mem.native import pointer, store
from mem.word import I64, INT_OF_BYTES, V, builder, const, emitting, raw, truth
from smp.hart import SINK, Hart
from smp.loopfinder import Block, Instruction, is_return
from smp.row import Kind, Row

LEFT = 1  # no pc: all are even
KINDS = (Kind.ALU, Kind.LOAD, Kind.STORE, Kind.BRANCH, Kind.JAL, Kind.JALR)
OPERANDS = {"rs1", "rs2", "imm", "pc", "value"}
X, PC, LEFT_FIELD, ALARM = (Hart.offset(n) for n in ("x", "pc", "left", "alarm"))
DATA = Hart.offset("mmu") + Mmu.offset("data")


def is_known(row: Row) -> bool:
    """Whether the optimizer takes this row into a loop."""
    return row.kind in KINDS and set(row.parameters()) <= OPERANDS


class Cell:
    """A value that changes: an LLVM stack slot, which becomes a register."""

    def __init__(self, entry: ir.IRBuilder, first: Any) -> None:
        self.slot = entry.alloca(I64)
        entry.store(first, self.slot)

    def get(self) -> V:
        return V(builder().load(self.slot, typ=I64))

    def set(self, value: Any) -> None:
        builder().store(raw(value), self.slot)


class LoopCode:
    """One loop while its function is emitted.  `access` is the host address of smp/translate.py's loop_access."""

    def __init__(self, blocks: dict[int, Block], entries: list[int], access: int) -> None:
        self.blocks, self.entries, self.access = blocks, entries, access
        self.module = ir.Module("loop")
        self.function = ir.Function(self.module, ir.FunctionType(I64, [I64, I64]), "loop")
        self.function.attributes.add("nounwind")
        # A table would be data outside of the code.  llvmlite's own `add` knows no attributes that are texts.
        set.add(self.function.attributes, '"no-jump-tables"="true"')
        self.hart = V(self.function.args[0])
        self.entry = ir.IRBuilder(self.function.append_basic_block("entry"))
        every = [i for block in blocks.values() for i in block.instructions]
        self.written = sorted({i.fields["rd"] for i in every if i.row.kind not in (Kind.STORE, Kind.BRANCH)} - {0})
        self.places = {pc: self.function.append_basic_block(f"at_{pc:x}") for pc in blocks}
        with emitting(self.entry):
            used = {i.fields[n] for i in every for n in ("rs1", "rs2") if n in i.fields} | set(self.written)
            self.x = {n: Cell(self.entry, self._field(X + 8 * n).v) for n in sorted(used - {0})}
            self.left = Cell(self.entry, self._field(LEFT_FIELD).v)
            self.next = Cell(self.entry, const(0))
            self.data = self._field(DATA)
            self.alarm = self._field(ALARM)
        bases = {(i.fields["rs1"], i.row.kind is Kind.STORE) for i in every if i.row.kind in (Kind.LOAD, Kind.STORE)}
        # Where each base register last led to: the tag, and the addend to host addresses
        self.pages = {key: (Cell(self.entry, const(EMPTY)), Cell(self.entry, const(0))) for key in sorted(bases)}
        self.leave, self.look = (self.function.append_basic_block(n) for n in ("leave", "look"))

    def _field(self, offset: int) -> V:
        return V(builder().load(pointer(self.hart + offset, I64), typ=I64))

    def emit(self) -> ir.Module:
        """All of the function."""
        for pc in sorted(self.blocks):
            with emitting(ir.IRBuilder(self.places[pc])):
                self.block(self.blocks[pc])
        with emitting(ir.IRBuilder(self.leave)):
            self.save()
            builder().ret(self.next.get().v)
        with emitting(ir.IRBuilder(self.look)):
            self.save()
            store(self.hart + PC, self.next.get(), 8)
            builder().ret(const(LEFT))
        chosen = self.entry.switch(self.function.args[1], self.places[self.entries[0]])
        for index, pc in enumerate(self.entries):
            chosen.add_case(const(index), self.places[pc])
        return self.module

    def save(self) -> None:
        """Registers and what is left of the quantum to the record."""
        for number in self.written:
            store(self.hart + X + 8 * number, self.x[number].get(), 8)
        store(self.hart + LEFT_FIELD, self.left.get(), 8)

    def read(self, number: int) -> V:
        return self.x[number].get() if number else V(const(0))

    def split(self, condition: Any, likely: bool = True) -> ir.Block:
        """Go on where the condition holds; gives the block where it does not."""
        yes, no = (self.function.append_basic_block() for _ in range(2))
        made = builder().cbranch(truth(condition), yes, no)
        made.set_weights([2000, 1] if likely else [1, 1])
        builder().position_at_end(yes)
        return no

    # Control flow

    def block(self, block: Block) -> None:
        """A block of the loop: the look around where control comes back, its instructions, and where it goes on."""
        if block.pc in self.entries:
            self.look_around(block.pc)
        self.left.set(self.left.get() - len(block.instructions))
        for index, instruction in enumerate(block.instructions):
            self.instruction(instruction, len(block.instructions) - index, block.successors)
        if not builder().block.is_terminated:
            self.go(block.end)

    def look_around(self, pc: int) -> None:
        """Leave when the alarm rings or the quantum is used up."""
        alarm = builder().load_atomic(pointer(self.alarm, INT_OF_BYTES[4]), "monotonic", 4, typ=INT_OF_BYTES[4])
        alarm_is_quiet = builder().icmp_unsigned("==", alarm, ir.Constant(INT_OF_BYTES[4], 0))
        some_left = builder().icmp_signed(">=", self.left.get().v, const(0))
        stop = self.split(V(builder().zext(builder().and_(alarm_is_quiet, some_left), I64)))
        with emitting(ir.IRBuilder(stop)):
            self.next.set(pc)
            builder().branch(self.look)

    def go(self, pc: int) -> None:
        """On to a known pc."""
        if pc in self.places:
            builder().branch(self.places[pc])
        else:
            self.exit(pc)

    def exit(self, pc: Any) -> None:
        self.next.set(pc)
        builder().branch(self.leave)

    # Instructions

    def instruction(self, i: Instruction, not_run: int, successors: list[int]) -> None:
        match i.row.kind:
            case Kind.ALU:
                if i.fields["rd"]:
                    self.x[i.fields["rd"]].set(self.meaning(i))
            case Kind.LOAD | Kind.STORE:
                self.memory(i, not_run)
            case Kind.BRANCH:
                other = self.split(self.meaning(i), likely=False)
                self.go(i.target)
                builder().position_at_end(other)
            case Kind.JAL:
                self.link(i)
                self.go(i.target)
            case Kind.JALR:
                target = (self.read(i.fields["rs1"]) + i.fields["imm"]) & ~1
                self.link(i)
                for pc in successors if is_return(i) else []:
                    if pc in self.places:
                        other = self.split(target == pc, likely=False)
                        self.go(pc)
                        builder().position_at_end(other)
                self.exit(target)

    def link(self, i: Instruction) -> None:
        if i.fields["rd"]:
            self.x[i.fields["rd"]].set(i.pc + i.length)

    def meaning(self, i: Instruction, **given: V) -> Any:
        """What the row says, of these operands."""
        assert i.row.meaning
        operands = {"imm": V(const(i.fields.get("imm", 0))), "pc": V(const(i.pc)), **given}
        for name in ("rs1", "rs2"):
            if name in i.fields:
                operands[name] = self.read(i.fields[name])
        return i.row.meaning(*[operands[name] for name in i.row.parameters()])

    # Memory

    def memory(self, i: Instruction, not_run: int) -> None:
        is_store = i.row.kind is Kind.STORE
        tag, addend = self.pages[i.fields["rs1"], is_store]
        address = self.read(i.fields["rs1"]) + i.fields["imm"]
        page = address & (PAGE_MASK | i.row.size - 1)
        done = self.function.append_basic_block("done")
        other = self.split(page == tag.get())
        hit = builder().block
        with emitting(ir.IRBuilder(other)):
            entry = self.data + ((address >> 12) & (TLB_ENTRIES - 1)) * 16 + (WRITE_BANK if is_store else 0)
            miss = self.split(V(builder().load(pointer(entry, I64), typ=I64)) == page)
            tag.set(page)
            addend.set(V(builder().load(pointer(entry + 8, I64), typ=I64)))
            builder().branch(hit)
        self.touch(i, address + addend.get())
        builder().branch(done)
        with emitting(ir.IRBuilder(miss)):
            self.slow(i, address, not_run)
            builder().branch(done)
        builder().position_at_end(done)

    def touch(self, i: Instruction, host: V) -> None:
        """The access itself."""
        kind = INT_OF_BYTES[i.row.size]
        place = pointer(host, kind)
        if i.row.kind is Kind.STORE:
            value = raw(self.read(i.fields["rs2"]))
            value = value if i.row.size == 8 else builder().trunc(value, kind)
            builder().store_atomic(value, place, "monotonic", i.row.size)
            return
        loaded = builder().load_atomic(place, "monotonic", i.row.size, typ=kind)
        value = V(loaded if i.row.size == 8 else builder().zext(loaded, I64))
        if i.fields["rd"]:
            self.x[i.fields["rd"]].set(self.meaning(i, value=value))

    def slow(self, i: Instruction, address: V, not_run: int) -> None:
        """The access by `access`: afterwards the TLB may have changed."""
        is_store = i.row.kind is Kind.STORE
        register = i.fields["rs2"] if is_store else i.fields["rd"] or SINK
        sign = 32 if i.row.name in ("lb", "lh", "lw") else 0
        flags = (16 if is_store else 0) | sign | (64 if i.length == 2 else 0)
        info = i.row.size | flags | register << 8 | not_run << 16
        self.save()
        native = builder().inttoptr(const(self.access), ir.FunctionType(I64, [I64] * 4).as_pointer())
        builder().call(native, [self.hart.v, address.v, const(i.pc), const(info)])
        if not is_store and i.fields["rd"]:
            self.x[i.fields["rd"]].set(self._field(X + 8 * i.fields["rd"]))
        for tag, _ in self.pages.values():
            tag.set(EMPTY)


def compile_loop(module: ir.Module, machine: Any) -> bytes:
    """The host code of the module's only function; empty when it refers to data, which is not taken along."""
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    # All of LLVM's level 2 takes five times as long and gains next to nothing here.
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(parsed, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    found: dict[str, bytes] = {}
    for section in llvm.ObjectFileRef.from_data(machine.emit_object(parsed)).sections():
        found[(section.name() or b"").decode()] = section.data()
    if any(name.startswith((".rela.text", ".rodata")) for name in found):
        return b""
    return found[".text"]
