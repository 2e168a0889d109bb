"""Records of translated blocks, for -d in_asm, -d out_asm and -perfmap: who writes them, and how they are read.

The hart that translates appends a record to a file without a name, under the translator's lock.  The supervisor
reads them while it waits for the machine's end (smp/blocktext.py): no hart waits for it, and no record is lost.
"""

import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from mem.atomics import write_fd
from mem.layout import Layout, layout, u32, u64
from mem.machine import Machine, machine
from mem.native import native
from mem.regions import BLOCK_RECORD, CODE_TABLE, MACHINE
from smp.codecache import CodeTable, text_of
from smp.decode import length_of, word_at
from smp.hart import Hart

BATCH = 1 << 22  # bytes of records read at a time
OPTIMIZER = 0xFFFF_FFFF


@layout
class BlockRecord(Layout):
    """What a record begins with; the guest's bytes and the host's follow."""

    vpc: u64
    ppc: u64
    code: u64  # host address of its first byte
    guest_bytes: u32
    host_bytes: u32
    hart: u32  # that translated it, or OPTIMIZER
    privilege: u32


@native
def append(address: int, count: int) -> None:
    """Write to the file of records; one write that fails ends them all."""
    m = Machine.at(MACHINE)
    if m.blocks_fd and write_fd(m.blocks_fd, address, count) != count:
        m.blocks_lost = 1
        m.blocks_fd = 0


@native
def bytes_of(text: int, instructions: int) -> int:
    """The size of so many instructions from here on."""
    at = text
    for _ in range(instructions):
        at += length_of(word_at(at))
    return at - text


@native(cold=True)
def write_record(h: Hart, ppc: int, code: int) -> None:
    """Append the record of the block that was just translated.  Under the lock."""
    asm = CodeTable.at(CODE_TABLE).asm
    record = BlockRecord.at(BLOCK_RECORD)
    record.vpc = h.pc
    record.ppc = ppc
    record.code = code
    record.guest_bytes = bytes_of(text_of(ppc), asm.count)
    record.host_bytes = asm.out - code
    record.hart = h.id
    record.privilege = h.privilege
    append(BLOCK_RECORD, BlockRecord.sizeof())
    append(text_of(ppc), record.guest_bytes)
    append(code, record.host_bytes)


@native
def record_block(h: Hart, ppc: int, code: int) -> None:
    """Record a block if someone asked for it."""
    if Machine.at(MACHINE).blocks_fd:
        write_record(h, ppc, code)


@native
def record_loop(vpc: int, code: int) -> None:
    """Record a loop that was just optimized, if someone asked for it; it has no guest bytes.  Under the lock."""
    if not Machine.at(MACHINE).blocks_fd:
        return
    record = BlockRecord.at(BLOCK_RECORD)
    record.vpc = vpc
    record.ppc = 0
    record.code = code
    record.guest_bytes = 0
    record.host_bytes = CodeTable.at(CODE_TABLE).asm.out - code
    record.hart = OPTIMIZER
    record.privilege = 0
    append(BLOCK_RECORD, BlockRecord.sizeof())
    append(code, record.host_bytes)


class Translated(NamedTuple):
    """A record, read; of a loop that was optimized when there are no guest bytes."""

    vpc: int
    ppc: int
    code: int
    guest: bytes
    host: bytes
    hart: int
    privilege: int


class BlockFile:
    """The file of records; made before the harts are, read by the supervisor."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.at = 0
        machine().blocks_fd = self.file.fileno()

    def batch(self) -> list[Translated]:
        """The next complete records, none when there is nothing new."""
        data = os.pread(self.file.fileno(), BATCH, self.at)
        found = list(records(data))
        self.at += sum(BlockRecord.sizeof() + len(block.guest) + len(block.host) for block in found)
        return found

    def lost(self) -> bool:
        """Whether records could not be written."""
        return bool(machine().blocks_lost)

    def close(self) -> None:
        machine().blocks_fd = 0
        self.file.close()


def records(data: bytes) -> Iterator[Translated]:
    """Records up to the first that is not complete."""
    at = 0
    while at + BlockRecord.sizeof() <= len(data):
        head = BlockRecord.ctype.from_buffer_copy(data, at)
        guest = at + BlockRecord.sizeof()
        host = guest + head.guest_bytes
        at = host + head.host_bytes
        if at <= len(data):
            yield Translated(head.vpc, head.ppc, head.code, data[guest:host], data[host:at], head.hart, head.privilege)
