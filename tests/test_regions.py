"""The shared region: every record has its place for itself."""

from mem import regions
from mem.clint import Clint
from mem.log import LINE
from mem.machine import Machine
from mem.mailbox import Mailbox, Sleepers
from mem.plic import Plic
from mem.reservation import Reservations
from mem.uart import Uart
from mem.window import Window
from smp.blocklog import BlockRecord
from smp.hot import HotBlocks

PLACES = {
    "MACHINE": Machine.sizeof(),
    "MAILBOXES": regions.MAX_HARTS * Mailbox.sizeof(),
    "SLEEPERS": Sleepers.sizeof(),
    "CLINT": Clint.sizeof(),
    "PLIC": Plic.sizeof(),
    "UART": Uart.sizeof(),
    "WINDOWS": 32 * Window.sizeof(),
    "RESERVATIONS": Reservations.sizeof(),
    "LOG_LINES": regions.MAX_HARTS * LINE,
    "BLOCK_RECORD": BlockRecord.sizeof(),
    "HOT": HotBlocks.sizeof(),
}


def test_records_in_the_shared_region_do_not_overlap() -> None:
    spans = sorted((getattr(regions, name), getattr(regions, name) + size, name) for name, size in PLACES.items())
    ends = [*(start for start, _, _ in spans[1:]), regions.SHARED + regions.SHARED_BYTES]
    assert [name for (_, end, name), limit in zip(spans, ends, strict=True) if end > limit] == []


def test_every_place_in_the_shared_region_is_checked() -> None:
    shared = range(regions.SHARED, regions.SHARED + regions.SHARED_BYTES)
    named = {name for name, value in vars(regions).items() if isinstance(value, int) and value in shared}
    assert named - {"SHARED"} == set(PLACES)
