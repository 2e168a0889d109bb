"""virtio-balloon: pages go back to the host, and to nobody else's harm."""

from pathlib import Path
from struct import pack, unpack

import pytest
from fake_driver import DATA, Rig

from mem.memmap import RAM_BASE
from smp import options
from smp.config_check import check
from smp.cpu import ConfigError
from smp.io_setup import io_config
from virtio.balloon import (
    F_DEFLATE_ON_OOM,
    F_PAGE_POISON,
    F_PAGE_REPORTING,
    F_STATS_VQ,
    MOST_PAGES,
    PAGE,
    Balloon,
    runs,
)
from virtio.features import VERSION_1
from virtio.queue import Ram

PLACE = RAM_BASE  # pages that the rings don't use
NUMBER = PLACE // PAGE


def shared() -> int:
    """KiB of memfds that this process has mapped and touched."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem"))


def fill(ram: Ram, pages: int) -> None:
    ram.view(PLACE, pages * PAGE)[:] = b"\xaa" * (pages * PAGE)


def start(ram: Ram, features: int = 0, **more: bool) -> Rig:
    device = Balloon(**more)
    return Rig(ram, device).start((features | VERSION_1) if features else None)


def numbers(*pages: int) -> bytes:
    return pack(f"<{len(pages)}I", *pages)


def test_inflated_pages_are_the_hosts_and_zero_afterwards(ram: Ram) -> None:
    rig = start(ram)
    fill(ram, 200)
    before = shared()
    rig.ask(numbers(*(NUMBER + n for n in range(100))), numbers(*(NUMBER + n for n in range(199, 100, -1))))
    assert before - shared() >= 190 * PAGE >> 10
    assert bytes(ram.view(PLACE, 100 * PAGE)) == bytes(100 * PAGE)
    assert bytes(ram.view(PLACE + 100 * PAGE, PAGE)) == b"\xaa" * PAGE
    rig.ask(numbers(NUMBER), queue=1)
    ram.view(PLACE, 4)[:] = b"back"
    assert bytes(ram.view(PLACE, 5)) == b"back\0"


def test_pages_that_are_not_ram_are_passed_over(ram: Ram) -> None:
    rig = start(ram)
    fill(ram, 2)
    last = (RAM_BASE + ram.size) // PAGE
    rig.ask(numbers(0, 1, NUMBER - 1, last, 0xFFFF_FFFF, 0x8000_0000))
    assert bytes(ram.view(PLACE, 2 * PAGE)) == b"\xaa" * 2 * PAGE
    for odd in (b"", b"\0", numbers(NUMBER) + b"\0\0"):
        rig.rings[0].add(odd)
        rig.notify(0)
    assert not rig.needs_reset()
    assert bytes(ram.view(PLACE, 2 * PAGE)) == bytes(PAGE) + b"\xaa" * PAGE


def test_a_request_of_too_many_pages_costs_a_reset(ram: Ram) -> None:
    rig = start(ram)
    rig.rings[0].add(bytes(4 * MOST_PAGES + 4))
    rig.notify(0)
    assert rig.needs_reset()


def test_the_driver_says_how_many_there_are_and_a_reset_forgets(ram: Ram) -> None:
    rig = start(ram)
    rig.device.demand(3 << 20)
    assert rig.interrupts() & 2
    assert rig.read(0x100) == 768
    rig.write(0x104, 5)
    assert unpack("<II", rig.device.config()[:8]) == (768, 5)
    rig.write(0x100, 99)
    rig.write(0x104, 9, 1)
    assert unpack("<II", rig.device.config()[:8]) == (768, 5)
    rig.write(0x070, 0)
    assert rig.device.actual == 0


def test_statistics_are_asked_for_by_giving_the_buffer_back(ram: Ram) -> None:
    rig = start(ram)
    device = rig.device
    assert not device.ask_statistics()
    rig.rings[2].add(pack("<HQHQ", 4, 1000, 5, 2000) + b"odd")
    rig.notify(2)
    assert device.statistics == {4: 1000, 5: 2000}
    assert rig.rings[2].collect() == []
    assert device.ask_statistics() and not device.ask_statistics()
    assert len(rig.rings[2].collect()) == 1
    for n in range(3):
        rig.rings[2].add(pack("<HQ", 1, n) * 1000)
    rig.notify(2)
    assert device.statistics == {1: 2}
    assert len(rig.rings[2].collect()) == 2


@pytest.mark.parametrize(("features", "queue"), [(F_PAGE_REPORTING | F_STATS_VQ, 3), (F_PAGE_REPORTING, 2)])
def test_reported_pages_are_whole_ones(ram: Ram, features: int, queue: int) -> None:
    rig = start(ram, features, reporting=True)
    rig.rings[queue].bump = DATA + 0x10_0000 + 16
    (buffer,) = rig.rings[queue].add(3 * PAGE)
    ram.view(buffer.address, buffer.size)[:] = b"\xaa" * buffer.size
    rig.notify(queue)
    assert len(rig.rings[queue].collect()) == 1
    assert bytes(ram.view(buffer.address, buffer.size)) == (b"\xaa" * (PAGE - 16) + bytes(2 * PAGE) + b"\xaa" * 16)


def test_queues_beyond_what_was_negotiated_do_nothing(ram: Ram) -> None:
    rig = start(ram, 1 << 32)
    for queue in (2, 3):
        rig.rings[queue].add(numbers(NUMBER))
        rig.notify(queue)
        assert rig.rings[queue].collect() == []
    assert not rig.needs_reset()


def test_runs_of_page_numbers() -> None:
    assert runs([5, 3, 4, 4, 9]) == [(3, 3), (9, 1)]
    assert runs([]) == []


def test_options() -> None:
    line = ["-kernel", __file__, "-device", "virtio-balloon-pci,size=64M,deflate-on-oom=on,free-page-reporting=on"]
    config = options.parse(line)
    check(config)
    (device,) = io_config(config).devices.values()
    assert isinstance(device, Balloon) and device.wanted == 16384
    assert device.features == F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON | F_PAGE_REPORTING
    for wrong in ("size=128M", "size=x", "deflate-on-oom=yes", "free-page-hint=on"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0]):
            check(options.parse(["-kernel", __file__, "-device", f"virtio-balloon-pci,{wrong}"]))
