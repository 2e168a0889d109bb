"""Host code for a loop of guest code, by LLVM, from the rows' meanings.

The loop becomes a function that takes the pinned guest registers, what is left of the quantum and the hart record in
the host registers in which translated blocks have them: LLVM's calling convention `ghccc`, which smp/x86.py follows.
So it is jumped to from a block and leaves by a jump to one, with nothing to save or load but those registers that
live in the record.
A load or store remembers in the record which page its base register last led to, and looks the TLB up only when that
changes; what the TLB has not is left to translated code of that one instruction.  Accesses off the same value share
that look (smp/loopgroups.py); for when they don't lie in one page that the TLB has, their code is there twice.
Guest accesses are atomic (monotonic): LLVM neither drops, repeats nor splits them, nor moves them out of the loop.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from mem.native import pointer, store
from mem.tlb import EMPTY, PAGE_MASK, TLB_ENTRIES, WRITE_BANK, Mmu
from mem.word import I64, INT_OF_BYTES, V, builder, const, emitting, raw, truth
from smp.hart import Hart
from smp.loopfinder import Block, Blocks, Place, following, headers
from smp.loopgroups import Group, Region, find_regions
from smp.looppages import PAGE, Instruction
from smp.row import Kind, Row
from smp.x86 import GHC_ARGUMENTS, HART, LEFT, PINNED

KINDS = (Kind.ALU, Kind.LOAD, Kind.STORE, Kind.BRANCH, Kind.JAL, Kind.JALR)
OPERANDS = {"rs1", "rs2", "imm", "pc", "value"}
X, PC, ENTRY, EXIT, CELLS = (Hart.offset(n) for n in ("x", "pc", "loop_entry", "loop_exit", "loop_cells"))
RARELY = "rarely"
EVEN, LIKELY = (1, 1), 8  # weights of branches
DATA = Hart.offset("mmu") + Mmu.offset("data")
GUEST_IN = {host: guest for guest, host in PINNED.items()}
PASSED = {GUEST_IN[host]: index for index, host in enumerate(GHC_ARGUMENTS) if host in GUEST_IN}
FUNCTION = ir.FunctionType(ir.VoidType(), [I64] * len(GHC_ARGUMENTS))

# How a loop is left (smp/loopinstall.py): on at a pc of the loop's pages, or of others; this instruction alone by its
# template, and on behind it; the hart's loop looks around, and then on at this pc; on at the pc in the record.
GO, FAR, MISS, LOOK, ANYWHERE = range(5)


@dataclass(frozen=True)
class Exit:
    """A way out of a loop."""

    kind: int
    pc: int
    not_run: int = 0  # instructions that the block took off the quantum, to be put back


@dataclass
class HostCode:
    """A compiled loop.

    jumps: where a jump's displacement ends, and the exit it goes to; None is any of `rare`, the one in the record.
    """

    text: bytes
    jumps: list[tuple[int, Exit | None]]
    rare: list[Exit]


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


@dataclass(frozen=True)
class Run:
    """A block's instructions while they are emitted.

    hosts: for accesses whose pages have been found, what is the base register's value on the host.  careful: an access
    looks the TLB up, whatever its base register last led to.
    """

    instructions: list[Instruction]
    calls: tuple[int, ...]
    hosts: dict[int, V]
    careful: bool = False


class LoopCode:
    """One loop while its function is emitted."""

    def __init__(self, blocks: Blocks, entries: list[int]) -> None:
        self.blocks, self.entries = blocks, entries
        self.headers = headers(blocks) | {Place(pc) for pc in entries}
        self.module = ir.Module("loop")
        self.function = ir.Function(self.module, FUNCTION, "loop")
        self.function.calling_convention = "ghccc"
        # Floating-point registers are the guest's; a jump table would be data outside of the code.
        # llvmlite's own `add` knows no attributes that are texts.
        self.function.attributes.update({"nounwind", "noimplicitfloat"})
        set.add(self.function.attributes, '"no-jump-tables"="true"')
        self.entry = ir.IRBuilder(self.function.append_basic_block("entry"))
        every = [i for block in blocks.values() for i in block.instructions]
        written = {i.fields["rd"] for i in every if i.row.kind not in (Kind.STORE, Kind.BRANCH)}
        used = {i.fields[n] for i in every for n in ("rs1", "rs2") if n in i.fields} | written | set(PASSED)
        self.written = sorted(written - {0} - set(PASSED))  # to the record
        self.places = {place: self.function.append_basic_block(f"at_{place.pc:x}") for place in blocks}
        self.pages_of_code = {i.pc & -PAGE for i in every}
        self.exits: dict[Exit, tuple[ir.Block, str]] = {}
        self.rare: list[Exit] = []
        self.rarely = self.function.append_basic_block("rarely")
        arguments = dict(zip(GHC_ARGUMENTS, self.function.args, strict=True))
        self.hart = V(arguments[HART])
        with emitting(self.entry):
            self.x = {n: Cell(self.entry, self._first(n)) for n in sorted(used - {0})}
            self.left = Cell(self.entry, arguments[LEFT])
            self.data = self._field(DATA)
        bases = {(i.fields["rs1"], i.row.kind is Kind.STORE) for i in every if i.row.kind in (Kind.LOAD, Kind.STORE)}
        # Where each base register last led to: the tag, and the addend to host addresses
        self.pages: dict[tuple[int, bool], V] = {}
        with emitting(self.entry):
            for index, key in enumerate(sorted(bases)):
                place = self.hart + CELLS + 16 * index
                self.pages[key] = place
                store(place, EMPTY, 8)

    def _first(self, number: int) -> ir.Value:
        """What a guest register holds when the loop is entered."""
        return self.function.args[PASSED[number]] if number in PASSED else self._field(X + 8 * number).v

    def _field(self, offset: int) -> V:
        return V(builder().load(pointer(self.hart + offset, I64), typ=I64))

    def emit(self) -> ir.Module:
        """All of the function."""
        for place in sorted(self.blocks):
            with emitting(ir.IRBuilder(self.places[place])):
                self.block(self.blocks[place])
        with emitting(ir.IRBuilder(self.rarely)):
            self.leave(RARELY)
        first = self.places[Place(self.entries[0])]
        if len(self.entries) == 1:
            self.entry.branch(first)
            return self.module
        with emitting(self.entry):
            chosen = self.entry.switch(self._field(ENTRY).v, first)
        for index, pc in enumerate(self.entries):
            chosen.add_case(const(index), self.places[Place(pc)])
        chosen.set_weights([1000] + [1] * len(self.entries))
        return self.module

    def read(self, number: int) -> V:
        return self.x[number].get() if number else V(const(0))

    def split(self, condition: Any, weights: tuple[int, int] = (2000, 1)) -> ir.Block:
        """Go on where the condition holds; gives the block where it does not."""
        yes, no = (self.function.append_basic_block() for _ in range(2))
        builder().cbranch(truth(condition), yes, no).set_weights(weights)
        builder().position_at_end(yes)
        return no

    # Control flow

    def block(self, block: Block) -> None:
        """A block of the loop: the look around where control comes back, its instructions, and where it goes on."""
        self.take(block)
        run = Run(block.instructions, block.place.calls, {})
        self.run(run, 0, len(block.instructions), find_regions(block.instructions))
        if not builder().block.is_terminated:
            self.go(block.end)

    def take(self, block: Block) -> None:
        """Take the block's instructions off the quantum; where control comes back leave when there are too few."""
        left = self.left.get() - len(block.instructions)
        self.left.set(left)
        if block.place in self.headers:
            stop = self.split(V(builder().zext(builder().icmp_signed(">=", left.v, const(0)), I64)))
            with emitting(ir.IRBuilder(stop)):
                self.rare_exit(Exit(LOOK, block.pc, len(block.instructions)))
            self.left.set(V(builder().asm(ir.FunctionType(I64, [I64]), "", "=r,0", [left.v], side_effect=False)))

    def go(self, place: Place) -> None:
        """On to a known pc."""
        if place in self.places:
            builder().branch(self.places[place])
        else:
            self.exit(self.way_to(place.pc))

    def way_to(self, pc: int) -> Exit:
        """The way out to a known pc."""
        return Exit(GO if pc & -PAGE in self.pages_of_code else FAR, pc)

    def exit(self, way: Exit) -> None:
        """Leave, by a jump that is aimed later."""
        if way not in self.exits:
            block, name = self.function.append_basic_block("exit"), f"exit{len(self.exits)}"
            self.exits[way] = block, name
            with emitting(ir.IRBuilder(block)):
                self.leave(name)
        builder().branch(self.exits[way][0])

    def rare_exit(self, way: Exit) -> None:
        """Leave, by a jump that all rare ways out have in common: they are many, and would be most of the code."""
        if way not in self.rare:
            self.rare.append(way)
        store(self.hart + EXIT, self.rare.index(way) + 1, 8)
        builder().branch(self.rarely)

    def leave(self, name: str) -> None:
        """Guest registers to the record, or where blocks have them, and off."""
        for number in self.written:
            store(self.hart + X + 8 * number, self.x[number].get(), 8)
        target = ir.Function(self.module, FUNCTION, name)
        target.calling_convention = "ghccc"
        values = {HART: self.hart, LEFT: self.left.get()}
        values |= {PINNED[number]: self.x[number].get() for number in PASSED}
        builder().call(target, [values[host].v for host in GHC_ARGUMENTS], cconv="ghccc", tail="musttail")
        builder().ret_void()

    # Instructions

    def run(self, run: Run, first: int, behind: int, regions: list[Region]) -> None:
        """The instructions of a block from an index to another, of which some regions are emitted twice."""
        for region in regions:
            self.straight(run, first, region.first)
            self.region(run, region)
            first = region.last + 1
        self.straight(run, first, behind)

    def straight(self, run: Run, first: int, behind: int) -> None:
        for index in range(first, behind):
            self.instruction(run, index)

    def region(self, run: Run, region: Region) -> None:
        """A region's instructions: with its groups' pages found at once, and, where they are not, each by itself."""
        slow, join = (self.function.append_basic_block() for _ in range(2))
        hosts = dict(run.hosts)
        for group in region.groups:
            host = self.find_group(group, slow)
            hosts |= dict.fromkeys(group.members, host)
        self.run(replace(run, hosts=hosts), region.first, region.last + 1, region.inner)
        builder().branch(join)
        builder().position_at_end(slow)
        self.straight(replace(run, careful=True), region.first, region.last + 1)
        builder().branch(join)
        builder().position_at_end(join)

    def find_group(self, group: Group, slow: ir.Block) -> V:
        """What leads from the base register's value to host addresses; on at `slow` when there is no such thing."""
        cell = self.pages[group.base, group.stores]
        lowest = self.read(group.base) + group.low
        page = V(builder().load(pointer(cell, I64), typ=I64))
        other = self.split(self.is_inside(group, lowest, page))
        hit = builder().block
        with emitting(ir.IRBuilder(other)):
            page = lowest & PAGE_MASK
            entry = self.data + ((lowest >> 12) & (TLB_ENTRIES - 1)) * 16 + (WRITE_BANK if group.stores else 0)
            known = V(builder().load(pointer(entry, I64), typ=I64)) == page
            missed = self.split(known)
            with emitting(ir.IRBuilder(missed)):
                builder().branch(slow)
            apart = self.split(self.is_inside(group, lowest, page))
            with emitting(ir.IRBuilder(apart)):
                builder().branch(slow)
            store(cell, page, 8)
            store(cell + 8, V(builder().load(pointer(entry + 8, I64), typ=I64)), 8)
            builder().branch(hit)
        return V(builder().load(pointer(cell + 8, I64), typ=I64)) + self.read(group.base)

    def is_inside(self, group: Group, lowest: V, page: V) -> Any:
        """Whether a group whose lowest byte is at an address lies inside of a page (or EMPTY) and is aligned.

        One comparison: rotating brings bits that an aligned offset has not to the top.  From EMPTY, which is not
        aligned, an address may have an aligned offset if it is not either, so its own bits go there too; groups of
        bytes need another look.
        """
        bits = group.alignment.bit_length() - 1
        if not bits:
            return (lowest & PAGE_MASK == page) & (lowest + (group.span - 1) & PAGE_MASK == page)
        offset = lowest - page | lowest & (group.alignment - 1)
        return (offset >> bits | offset << 64 - bits) <= (PAGE - group.span) >> bits

    def instruction(self, run: Run, index: int) -> None:
        i, calls = run.instructions[index], run.calls
        match i.row.kind:
            case Kind.ALU:
                if i.fields["rd"]:
                    self.x[i.fields["rd"]].set(self.meaning(i))
            case Kind.LOAD | Kind.STORE:
                if index in run.hosts:
                    self.touch(i, run.hosts[index] + i.fields["imm"])
                else:
                    self.memory(i, len(run.instructions) - index, run.careful)
            case Kind.BRANCH:
                taken, behind = following(i, calls)
                other = self.split(self.meaning(i), self.weights(i, taken, behind))
                self.go(taken)
                builder().position_at_end(other)
            case Kind.JAL:
                self.link(i)
                for place in following(i, calls):
                    self.go(place)
                if not builder().block.is_terminated:
                    self.exit(self.way_to(i.target))
            case Kind.JALR:
                target = (self.read(i.fields["rs1"]) + i.fields["imm"]) & ~1
                self.link(i)
                for place in following(i, calls):
                    other = self.split(target == place.pc)
                    self.go(place)
                    builder().position_at_end(other)
                store(self.hart + PC, target, 8)
                self.exit(Exit(ANYWHERE, 0))

    def weights(self, i: Instruction, taken: Place, behind: Place) -> tuple[int, int]:
        """How often a branch may be taken, and not: loops go on, as far as one knows."""
        if taken not in self.places or behind not in self.places:
            return (LIKELY, 1) if taken in self.places else (1, LIKELY)
        return (LIKELY, 1) if i.target <= i.pc else EVEN

    def link(self, i: Instruction) -> None:
        if i.fields["rd"]:
            self.x[i.fields["rd"]].set(i.behind)

    def meaning(self, i: Instruction, **given: V) -> Any:
        """What the row says, of these operands."""
        assert i.row.meaning
        operands = {"imm": V(const(i.fields.get("imm", 0))), "pc": V(const(i.pc)), **given}
        for name in ("rs1", "rs2"):
            if name in i.fields:
                operands[name] = self.read(i.fields[name])
        return i.row.meaning(*[operands[name] for name in i.row.parameters()])

    # Memory

    def memory(self, i: Instruction, not_run: int, careful: bool) -> None:
        is_store = i.row.kind is Kind.STORE
        cell = self.pages[i.fields["rs1"], is_store]
        address = self.read(i.fields["rs1"]) + i.fields["imm"]
        page = address & (PAGE_MASK | i.row.size - 1)
        if careful:
            self.touch(i, address + self.look_up(i, address, page, not_run))
            return
        other = self.split(page == V(builder().load(pointer(cell, I64), typ=I64)))
        hit = builder().block
        with emitting(ir.IRBuilder(other)):
            addend = self.look_up(i, address, page, not_run)
            store(cell, page, 8)
            store(cell + 8, addend, 8)
            builder().branch(hit)
        self.touch(i, address + V(builder().load(pointer(cell + 8, I64), typ=I64)))

    def look_up(self, i: Instruction, address: V, page: V, not_run: int) -> V:
        """The addend that the TLB has for an access; where it has none, the loop is left."""
        entry = self.data + ((address >> 12) & (TLB_ENTRIES - 1)) * 16
        entry += WRITE_BANK if i.row.kind is Kind.STORE else 0
        miss = self.split(V(builder().load(pointer(entry, I64), typ=I64)) == page)
        with emitting(ir.IRBuilder(miss)):
            self.rare_exit(Exit(MISS, i.pc, not_run))
        return V(builder().load(pointer(entry + 8, I64), typ=I64))

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


def compile_loop(loop: LoopCode, machine: Any) -> HostCode | None:
    """The host code of a loop; None when it refers to data, which is not taken along."""
    module = loop.emit()
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
    exits: dict[str, Exit | None] = {name: way for way, (_, name) in loop.exits.items()}
    return host_code(machine.emit_object(parsed), exits | {RARELY: None}, loop.rare)


def host_code(file: bytes, exits: dict[str, Exit | None], rare: list[Exit]) -> HostCode | None:
    """The function in an object file, and the jumps out of it."""
    from elftools.elf.elffile import ELFFile  # a ninth of what a start would import, and only the optimizer needs it

    elf = ELFFile(BytesIO(file))
    sections: dict[str, Any] = {section.name: section for section in elf.iter_sections()}
    if any(name.startswith(".rodata") for name in sections):
        return None
    jumps = []
    for item in sections[".rela.text"].iter_relocations():
        name = sections[".symtab"].get_symbol(item["r_info_sym"]).name
        if name not in exits or item["r_addend"] != -4:
            return None
        jumps.append((item["r_offset"] + 4, exits[name]))
    return HostCode(sections[".text"].data(), jumps, rare)
