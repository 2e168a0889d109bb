"""Finds the loop around a busy instruction, in the bytes of its page of guest code.

What counts as the loop is the strongly connected component of the page's control flow that holds the instruction:
the inner loop, the loops around it, the paths between them, and functions of the page that are called on the way: a
return may lead to behind any call.  A jump out of the page, any other jalr, and an instruction that the optimizer
doesn't know (smp/loopcode.py) leave it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mem.word import signed
from smp.decode import BUCKET_ROWS, BUCKET_START, LIST, row_bucket
from smp.row import ROWS, Kind, Row

LIMIT = 800  # instructions looked at
LONGEST = 64  # instructions of a loop: longer ones gain little over their blocks, and take LLVM long
PAGE = 4096
RA = 1


@dataclass
class Instruction:
    """One decoded instruction; compressed ones appear as what they abbreviate."""

    pc: int
    row: Row
    fields: dict[str, int]
    length: int

    @property
    def target(self) -> int:
        """Where a branch or jal goes."""
        return self.pc + signed(self.fields["imm"])


@dataclass
class Block:
    """Instructions that run one after the other."""

    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)

    @property
    def pc(self) -> int:
        return self.instructions[0].pc

    @property
    def end(self) -> int:
        last = self.instructions[-1]
        return last.pc + last.length


def candidates(word: int, length: int) -> list[Row]:
    """The rows that a word can be, the most particular first."""
    number = row_bucket(word, 8 * length)
    return [LIST[n] for n in BUCKET_ROWS.values[BUCKET_START[number] : BUCKET_START[number + 1]]]


class Page:
    """A page of code as it was when its version was taken."""

    def __init__(self, data: bytes, vpc: int, extensions: int, known: Callable[[Row], bool]) -> None:
        self.data, self.base, self.known, self.extensions = data, vpc & ~(PAGE - 1), known, extensions
        self.decoded: dict[int, Instruction | None] = {}

    def at(self, pc: int) -> Instruction | None:
        """The instruction at a pc of this page, or None where the loop is left: unknown, or across the page's end."""
        if pc not in self.decoded:
            self.decoded[pc] = self.decode(pc)
        return self.decoded[pc]

    def decode(self, pc: int) -> Instruction | None:
        """`at`, when it is first asked for."""
        at = pc - self.base
        if not 0 <= at <= PAGE - 2:
            return None
        length = 4 if self.data[at] & 3 == 3 else 2
        if at + length > PAGE:
            return None
        word = int.from_bytes(self.data[at : at + length], "little")
        rows = (row for row in candidates(word, length) if row.accepts(word) and row.enabled(self.extensions))
        found = next(rows, None)
        if found is None:
            return None
        base = ROWS[found.base] if found.base else found
        return Instruction(pc, base, found.operands(word), length) if self.known(base) else None


def find_loop(page: Page, head: int) -> dict[int, Block]:
    """The blocks of the loop that holds `head`, by pc; empty when there is none."""
    instructions, leaders = _explore(page, head)
    blocks = _blocks(instructions, leaders)
    if head not in blocks:
        return {}
    while found := _component(blocks, head):
        if sum(len(block.instructions) for block in found.values()) <= LONGEST:
            break
        _cut_outermost(found)
        blocks = found
    return found


def entries(blocks: dict[int, Block], head: int) -> list[int]:
    """Where the loop may be entered: its head, and every block that control comes back to."""
    backward = {pc for block in blocks.values() for pc in block.successors if pc in blocks and pc <= block.pc}
    return [head, *sorted(backward - {head})]


def is_call(instruction: Instruction) -> bool:
    return instruction.row.kind is Kind.JAL and instruction.fields["rd"] == RA


def is_return(instruction: Instruction) -> bool:
    fields = instruction.fields
    return instruction.row.kind is Kind.JALR and (fields["rd"], fields["rs1"], fields["imm"]) == (0, RA, 0)


def _next(instruction: Instruction) -> list[int]:
    """Where control may go on, as far as the instruction itself says."""
    behind = instruction.pc + instruction.length
    match instruction.row.kind:
        case Kind.BRANCH:
            return [instruction.target, behind]
        case Kind.JAL:
            return [instruction.target]
        case Kind.JALR:
            return []
    return [behind]


def _explore(page: Page, head: int) -> tuple[dict[int, Instruction], set[int]]:
    """Everything reachable from `head` in the page, and where blocks begin."""
    found: dict[int, Instruction] = {}
    leaders, waiting = {head}, deque([head])  # calls are taken to come back
    while waiting and len(found) < LIMIT:
        pc = waiting.popleft()
        if pc in found or not (instruction := page.at(pc)):
            continue
        found[pc] = instruction
        following = _next(instruction)
        if is_call(instruction):
            following.append(instruction.pc + instruction.length)
        if instruction.row.kind in (Kind.BRANCH, Kind.JAL):
            leaders.update(following)
        waiting += following
    return found, leaders


def _blocks(instructions: dict[int, Instruction], leaders: set[int]) -> dict[int, Block]:
    made = {}
    returns = [i.pc + i.length for i in instructions.values() if is_call(i)]
    for leader in leaders & instructions.keys():
        block = Block([instructions[leader]])
        while True:
            last = block.instructions[-1]
            following = _next(last)
            jumps = last.row.kind in (Kind.BRANCH, Kind.JAL, Kind.JALR)
            if jumps or following[0] in leaders or following[0] not in instructions:
                break
            block.instructions.append(instructions[following[0]])
        following = returns if is_return(last) else following
        block.successors = [pc for pc in following if pc in instructions]
        made[leader] = block
    return made


def _component(blocks: dict[int, Block], head: int) -> dict[int, Block]:
    """The strongly connected component that `head` is in; empty when nothing leads back to it."""
    inside = _reachable(blocks, head) & _reaching(blocks, head)
    return {pc: block for pc, block in blocks.items() if pc in inside}


def _cut_outermost(blocks: dict[int, Block]) -> None:
    """Take away the way back that goes farthest, of the outermost loop as compilers lay code out."""
    back = [(block.pc - pc, block.pc, pc) for block in blocks.values() for pc in block.successors if pc in blocks]
    _, source, target = max(back)
    blocks[source].successors.remove(target)


def _reachable(blocks: dict[int, Block], head: int) -> set[int]:
    """Blocks that can be come to from `head` by one step or more."""
    seen: set[int] = set()
    waiting = list(blocks[head].successors)
    while waiting:
        pc = waiting.pop()
        if pc not in seen and pc in blocks:
            seen.add(pc)
            waiting += blocks[pc].successors
    return seen


def _reaching(blocks: dict[int, Block], head: int) -> set[int]:
    """Blocks that `head` can be come to from, `head` included."""
    seen = {head}
    grew = True
    while grew:
        more = {pc for pc, block in blocks.items() if pc not in seen and seen.intersection(block.successors)}
        seen |= more
        grew = bool(more)
    return seen
