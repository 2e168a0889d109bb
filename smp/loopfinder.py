"""Finds the loop around a busy instruction, in the bytes of the guest's code.

What counts as the loop is the strongly connected component of the control flow that holds the instruction: the inner
loop, the loops around it, the paths between them, and the functions that are called on the way, once for every call:
a place is a pc and the calls that led to it, so it is known where a return goes.  Other jumps by register, and
instructions that the optimizer doesn't know (smp/loopcode.py), leave the loop, and so does what calls itself.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from smp.looppages import Instruction, Program
from smp.row import Kind

LIMIT = 2000  # instructions looked at
LONGEST = 512  # instructions of a loop: longer ones take LLVM too long
DEEPEST = 4  # calls that a place may lie in
MOST_ENTRIES = 12
RA = 1


class Place(NamedTuple):
    """A pc of the loop, and where the calls that it lies in return to, the outermost first."""

    pc: int
    calls: tuple[int, ...] = ()


@dataclass
class Block:
    """Instructions that run one after the other."""

    place: Place
    instructions: list[Instruction]
    successors: list[Place] = field(default_factory=list)

    @property
    def pc(self) -> int:
        return self.place.pc

    @property
    def end(self) -> Place:
        """Where control goes on behind the last instruction."""
        return Place(self.instructions[-1].behind, self.place.calls)


Blocks = dict[Place, Block]


def find_loop(program: Program, head: int) -> Blocks:
    """The blocks of the loop that holds `head`; empty when there is none."""
    start = Place(head)
    instructions, leaders = _explore(program, start)
    blocks = _blocks(instructions, leaders)
    if start not in blocks:
        return {}
    while found := _component(blocks, start):
        if sum(len(block.instructions) for block in found.values()) <= LONGEST:
            break
        _cut_outermost(found)
        blocks = found
    return found


def headers(blocks: Blocks) -> set[Place]:
    """What control comes back to: every way around leads through one of them.

    By what the instructions say, for `_cut_outermost` takes successors away that are still jumped to.
    """
    ways = ((block, following(block.instructions[-1], block.place.calls)) for block in blocks.values())
    return {target for block, targets in ways for target in targets if target in blocks and _is_back(block, target)}


def entries(blocks: Blocks, head: int) -> list[int]:
    """Where the loop may be entered: its head, and what control comes back to outside of calls."""
    found = {place.pc for place in headers(blocks) if not place.calls} - {head}
    return [head, *sorted(found)][:MOST_ENTRIES]


def _is_back(block: Block, target: Place) -> bool:
    return target.calls == block.place.calls and target.pc <= block.pc


def is_call(instruction: Instruction) -> bool:
    return instruction.row.kind is Kind.JAL and instruction.fields["rd"] == RA


def is_return(instruction: Instruction) -> bool:
    fields = instruction.fields
    return instruction.row.kind is Kind.JALR and (fields["rd"], fields["rs1"], fields["imm"]) == (0, RA, 0)


def following(instruction: Instruction, calls: tuple[int, ...]) -> list[Place]:
    """Where control may go on, as far as it is known."""
    behind = instruction.behind
    match instruction.row.kind:
        case Kind.BRANCH:
            return [Place(instruction.target, calls), Place(behind, calls)]
        case Kind.JAL:
            if not is_call(instruction):
                return [Place(instruction.target, calls)]
            if len(calls) == DEEPEST or behind in calls:
                return []
            return [Place(instruction.target, (*calls, behind))]
        case Kind.JALR:
            return [Place(calls[-1], calls[:-1])] if calls and is_return(instruction) else []
    return [Place(behind, calls)]


def _explore(program: Program, start: Place) -> tuple[dict[Place, Instruction], set[Place]]:
    """Everything reachable from `start`, and where blocks begin."""
    found: dict[Place, Instruction] = {}
    leaders, waiting = {start}, deque([start])
    while waiting and len(found) < LIMIT:
        place = waiting.popleft()
        if place in found or not (instruction := program.at(place.pc)):
            continue
        found[place] = instruction
        more = following(instruction, place.calls)
        if instruction.row.kind in (Kind.BRANCH, Kind.JAL, Kind.JALR):
            leaders.update(more)
        waiting += more
    return found, leaders


def _blocks(instructions: dict[Place, Instruction], leaders: set[Place]) -> Blocks:
    made = {}
    for leader in leaders & instructions.keys():
        block = Block(leader, [instructions[leader]])
        while True:
            last = block.instructions[-1]
            more = following(last, leader.calls)
            jumps = last.row.kind in (Kind.BRANCH, Kind.JAL, Kind.JALR)
            if jumps or more[0] in leaders or more[0] not in instructions:
                break
            block.instructions.append(instructions[more[0]])
        block.successors = [place for place in more if place in instructions]
        made[leader] = block
    return made


def _component(blocks: Blocks, head: Place) -> Blocks:
    """The strongly connected component that `head` is in; empty when nothing leads back to it."""
    inside = _reachable({place: block.successors for place, block in blocks.items()}, head)
    before: dict[Place, list[Place]] = {place: [] for place in blocks}
    for place, block in blocks.items():
        for target in block.successors:
            if target in before:
                before[target].append(place)
    inside &= _reachable(before, head)
    return {place: block for place, block in blocks.items() if place in inside}


def _cut_outermost(blocks: Blocks) -> None:
    """Take away the way back that goes farthest, of the outermost loop as compilers lay code out."""
    back = [
        (-len(target.calls), block.pc - target.pc, block.place, target)
        for block in blocks.values()
        for target in block.successors
        if target in blocks and _is_back(block, target)
    ]
    _, _, source, target = max(back)
    blocks[source].successors.remove(target)


def _reachable(ways: dict[Place, list[Place]], head: Place) -> set[Place]:
    """What is come to from `head` by one step or more."""
    seen: set[Place] = set()
    waiting = list(ways[head])
    while waiting:
        place = waiting.pop()
        if place not in seen and place in ways:
            seen.add(place)
            waiting += ways[place]
    return seen
