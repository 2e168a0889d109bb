"""Which loads and stores of a block are found by one look at the page that their base register leads to.

A group is loads and stores at constant offsets from one value of one register, so close together that they mostly lie
in one page, and all aligned if one of them is.  A region is the part of a block from the first access of some groups to
their last one; the base registers of all of them have their values where it begins, so one check there is enough
(smp/loopcode.py).  Regions nest: the base of an inner one is loaded in the outer one.
"""

from dataclasses import dataclass, field

from mem.word import signed
from smp.looppages import Instruction
from smp.row import Kind

WIDEST = 1024  # bytes that a group reaches over at most: a wider one would often lie across two pages
DEEPEST = 2  # regions in each other: their instructions are emitted once more for each


@dataclass(frozen=True)
class Group:
    """Accesses by their indexes in the block.

    known: the index from which on the base has its value.  low: the offset from the base of the lowest byte, rounded
    down to `alignment`, which `base + low` must have; span: bytes from there to behind the last one.
    """

    base: int
    known: int
    members: tuple[int, ...]
    low: int
    span: int
    alignment: int
    stores: bool


@dataclass
class Region:
    """From the instruction `first` to the instruction `last`."""

    first: int
    last: int
    groups: list[Group]
    inner: list["Region"] = field(default_factory=list)


@dataclass
class Access:
    """A load or store."""

    index: int
    offset: int
    size: int
    is_store: bool


def find_regions(instructions: list[Instruction]) -> list[Region]:
    """The regions of a block, in order, that don't lie in another."""
    groups = []
    for (base, known), accesses in _by_base(instructions).items():
        while len(accesses) > 1:
            members = _together(accesses)
            groups += _group(base, known, members)
            accesses = [a for a in accesses if a not in members]
    return _regions(groups, instructions, 1)


def _by_base(instructions: list[Instruction]) -> dict[tuple[int, int], list[Access]]:
    """The accesses off each value of a register: its number, and the index from which on it has that value."""
    found: dict[tuple[int, int], list[Access]] = {}
    known = [0] * 32
    for index, i in enumerate(instructions):
        if i.row.kind in (Kind.LOAD, Kind.STORE):
            key = i.fields["rs1"], known[i.fields["rs1"]]
            access = Access(index, signed(i.fields["imm"]), i.row.size, i.row.kind is Kind.STORE)
            found.setdefault(key, []).append(access)
        if i.fields.get("rd"):
            known[i.fields["rd"]] = index + 1
    return found


def _together(accesses: list[Access]) -> list[Access]:
    """Those that lie near the first one and are aligned when the largest of them is."""
    low = high = accesses[0].offset
    near = []
    for a in accesses:
        if max(high, a.offset + a.size) - min(low, a.offset) <= WIDEST:
            low, high = min(low, a.offset), max(high, a.offset + a.size)
            near.append(a)
    largest = max(near, key=lambda a: a.size)
    return [a for a in near if (a.offset - largest.offset) % a.size == 0]


def _group(base: int, known: int, members: list[Access]) -> list[Group]:
    """The group of these accesses; none if they are too few."""
    if len(members) < 2:
        return []
    largest = max(members, key=lambda a: a.size)
    low = min(a.offset for a in members)
    low -= (low - largest.offset) % largest.size
    span = max(a.offset + a.size for a in members) - low
    indexes = tuple(a.index for a in members)
    return [Group(base, known, indexes, low, span, largest.size, any(a.is_store for a in members))]


def _clipped(group: Group, first: int, last: int, instructions: list[Instruction]) -> list[Group]:
    """The part of a group that lies between two indexes."""
    inside = [n for n in group.members if first <= n <= last]
    chosen = [instructions[n] for n in inside]
    accesses = [
        Access(n, signed(i.fields["imm"]), i.row.size, i.row.kind is Kind.STORE)
        for n, i in zip(inside, chosen, strict=True)
    ]
    return _group(group.base, group.known, accesses)


def _regions(groups: list[Group], instructions: list[Instruction], depth: int) -> list[Region]:
    """Regions of these groups: overlapping ones in one, or in each other."""
    made, waiting = [], sorted(groups, key=lambda g: g.members[0])
    while waiting:
        first, last, own, inner = waiting[0].members[0], waiting[0].members[-1], [waiting[0]], []
        rest = []
        for group in waiting[1:]:
            if group.members[0] > last:
                rest.append(group)
            elif group.known <= first:
                own.append(group)
                last = max(last, group.members[-1])
            else:
                inner.append(group)
        region = Region(first, last, own)
        cut = [part for group in inner for part in _clipped(group, first, last, instructions)]
        rest += [part for group in inner for part in _clipped(group, last + 1, len(instructions), instructions)]
        if depth < DEEPEST:
            region.inner = _regions(cut, instructions, depth + 1)
        made.append(region)
        waiting = sorted(rest, key=lambda g: g.members[0])
    return made
