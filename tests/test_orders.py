"""Orders of a monitor to devices, and what devices tell, through a socket pair."""

import json
import socket
import time
from pathlib import Path
from struct import pack, unpack
from typing import Any

import pytest
from fake_driver import Rig

from virtio import orders
from virtio.balloon import F_PAGE_POISON, F_PAGE_REPORTING, POISON, Balloon
from virtio.blk import Block
from virtio.features import VERSION_1
from virtio.image import Image
from virtio.net import Net
from virtio.netdev import Netdev
from virtio.orders import Orders
from virtio.queue import Ram


class Served:
    """A device in slot 0, with the monitor's end of the socket pair."""

    def __init__(self, ram: Ram, device: Any, features: int | None = None) -> None:
        self.rig = Rig(ram, device).start(features)
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(5)
        self.orders = Orders(theirs)
        self.orders.serve({0: self.rig.transport})

    def turn(self) -> None:
        for fd, events in self.orders.interest().items():
            self.orders.ready(fd, events)

    def ask(self, what: str, value: Any = None) -> Any:
        self.link.send(json.dumps({"number": 5, "slot": 0, "what": what, "value": value}).encode())
        self.turn()
        answer = json.loads(self.link.recv(65536))
        assert answer["number"] == 5
        return answer.get("value", answer.get("error"))

    def notes(self) -> list[Any]:
        self.link.setblocking(False)
        found = []
        try:
            while True:
                found.append(json.loads(self.link.recv(65536)))
        except BlockingIOError:
            return found
        finally:
            self.link.settimeout(5)


def test_a_disk_is_made_larger_and_smaller(ram: Ram, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    served = Served(ram, Block(Image(tmp_path / "disk")))
    for size in (1 << 20, 1024):
        assert served.ask("resize", size) is None
        assert unpack("<Q", served.rig.device.config()[:8]) == (size // 512,)
        assert (tmp_path / "disk").stat().st_size == size and served.rig.interrupts() & 2
    assert served.ask("size") == 1024
    assert "can't do that" in served.ask("close")
    readonly = Served(ram, Block(Image(tmp_path / "disk", readonly=True)))
    assert readonly.ask("resize", 4096) == "the image is read-only"
    assert (tmp_path / "disk").stat().st_size == 1024


def test_a_device_that_fails_at_an_order_needs_a_reset_and_the_process_goes_on(
    ram: Ram, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    served = Served(ram, Block(Image(tmp_path / "disk")))
    assert served.ask("resize", "large").startswith("blk: TypeError: ")
    assert served.rig.needs_reset() and served.rig.interrupts() & 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "(blk): TypeError: " in line and "the device needs a reset" in line
    served.rig.start()
    assert served.ask("size") == 4096


def test_a_cable_that_is_out_is_no_carrier(ram: Ram) -> None:
    served = Served(ram, Net(Netdev(), b"\x52\x54\0\0\0\1"))
    served.ask("set_link", False)
    assert served.rig.device.status == 0 and served.rig.interrupts() & 2
    served.rig.device.poll()
    assert served.rig.device.status == 0
    served.ask("set_link", True)
    assert served.rig.device.status & 1


def test_a_guest_that_changes_something_all_the_time_is_heard_once_a_second(
    ram: Ram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "NOTES_S", 0.2)
    served = Served(ram, Balloon())
    for pages in range(1, 1000):
        served.rig.write(0x104, pages)
    assert [note["value"] for note in served.notes()] == [4096]
    time.sleep(0.3)
    served.orders.ready(served.orders.timer.timer, 1)
    assert [note["value"] for note in served.notes()] == [999 * 4096]


def test_statistics_are_asked_for_again_and_again(ram: Ram) -> None:
    served = Served(ram, Balloon())
    served.rig.rings[2].add(pack("<HQ", 4, 1000))
    served.rig.notify(2)
    served.ask("poll_statistics", 1)
    for pause in (0.05, 1.1):
        time.sleep(pause)
        served.rig.device.host.ready(served.rig.device.host.timer, 1)
        assert served.rig.transport.poll()
        assert len(served.rig.rings[2].collect()) == 1
        served.rig.rings[2].add(pack("<HQ", 4, 2000))
        served.rig.notify(2)
    answer = served.ask("last_statistics")
    assert answer["tags"] == {"4": 2000} and abs(answer["time"] - time.time()) < 60
    served.ask("poll_statistics", 0)
    assert not served.rig.device.host.due


@pytest.mark.parametrize(("poison", "left"), [(0, False), (0xAA, True)])
def test_reported_pages_that_the_driver_has_filled_stay(ram: Ram, poison: int, left: bool) -> None:
    features = F_PAGE_REPORTING | F_PAGE_POISON | VERSION_1
    rig = Rig(ram, Balloon(reporting=True)).start(features)
    rig.write(0x100 + POISON, poison)
    rig.rings[2].bump = (rig.rings[2].bump + 4095) // 4096 * 4096
    (buffer,) = rig.rings[2].add(4096)
    ram.view(buffer.address, 4096)[:] = b"\xaa" * 4096
    rig.notify(2)
    assert bytes(ram.view(buffer.address, 4096)) == (b"\xaa" if left else b"\0") * 4096
