"""Limits on a disk: as much goes as they say, nothing is lost, and a reset forgets what waits."""

import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest
from fake_driver import DATA, Rig

from mem.window import Register
from smp import options
from smp.config import DriveConfig
from smp.cpu import ConfigError
from virtio.blk import Block, Kind
from virtio.image import Image
from virtio.queue import Ram
from virtio.throttle import Bucket, Throttle

SECTORS = 256


@pytest.fixture
def make(ram: Ram, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SECTORS * 512))
    made = []

    def started(**limits: int) -> Rig:
        named = {name.replace("_", "-"): value for name, value in limits.items()}
        made.append(Block(Image(path), throttle=Throttle(named)))
        return Rig(ram, made[-1]).start()

    yield started
    for disk in made:
        disk.close()


def turn(rig: Rig, timeout: float = 0) -> None:
    """What the event loop does."""
    poll = select.poll()
    for fd, events in rig.device.host.interest().items():
        poll.register(fd, events)
    for fd, events in poll.poll(timeout * 1000):
        rig.device.host.ready(fd, events)
    rig.transport.poll()


def offer(rig: Rig, kind: Kind, count: int, size: int = 512) -> float:
    """Gives the time before, which `seconds_for` counts from."""
    began, ring = time.monotonic(), rig.rings[0]
    for n in range(count):
        ring.bump = DATA + n * 0x2000
        data = size if kind == Kind.IN else bytes([n + 1]) * size
        ring.add(pack("<IIQ", kind, 0, n), data, 1)
    rig.notify()
    return began


def seconds_for(rig: Rig, count: int, began: float) -> float:
    """Until so many are done: at least what the limits ask for; a busy host takes longer."""
    found = 0
    while found < count:
        assert time.monotonic() - began < 60
        turn(rig, 0.1)
        found += len(rig.rings[0].collect())
    return time.monotonic() - began


def test_requests_a_second(make: Callable[..., Rig], tmp_path: Path) -> None:
    rig = make(iops_total=100)
    began = offer(rig, Kind.OUT, 20)
    assert seconds_for(rig, 20, began) > 0.07  # 11 at once, then 1 every 10 ms
    content = (tmp_path / "disk").read_bytes()
    assert [content[512 * n] for n in range(20)] == list(range(1, 21))


def test_bytes_a_second(make: Callable[..., Rig]) -> None:
    rig = make(bps_read=40960)
    began = offer(rig, Kind.IN, 6, 4096)
    assert seconds_for(rig, 6, began) > 0.3  # 2 at once, then 1 every 100 ms


def test_the_other_way_is_not_limited(make: Callable[..., Rig]) -> None:
    rig = make(bps_read=512, iops_read=1)
    offer(rig, Kind.OUT, 20, 4096)
    assert len(rig.rings[0].collect()) == 20


def test_what_may_go_at_once(make: Callable[..., Rig]) -> None:
    rig = make(iops_total=1, iops_total_max=15)
    offer(rig, Kind.OUT, 20)
    assert len(rig.rings[0].collect()) == 16


def test_a_reset_forgets_what_waits(make: Callable[..., Rig], tmp_path: Path) -> None:
    rig = make(iops_total=20)
    offer(rig, Kind.OUT, 20)
    held = (tmp_path / "disk").read_bytes()
    rig.write(Register.STATUS, 0)
    time.sleep(0.3)
    turn(rig)
    assert (tmp_path / "disk").read_bytes() == held and not rig.device.held
    rig.start()
    seconds_for(rig, 3, offer(rig, Kind.IN, 3))


def test_a_bucket_leaks() -> None:
    bucket = Bucket(10, 5)
    bucket.seen, bucket.level = 0.0, 8.0
    assert bucket.wait(0.0) == pytest.approx(0.3)
    assert bucket.wait(0.2) == pytest.approx(0.1)
    assert bucket.wait(0.4) == 0.0 and bucket.wait(100.0) == 0.0 == bucket.level


def test_the_options() -> None:
    text = "-drive file=x,throttling.iops-total=10,throttling.iops-total-max=20,throttling.bps-read=1000000000000"
    (drive,) = options.parse(text.split()).drives
    assert isinstance(drive, DriveConfig)
    assert drive.throttle == (("iops-total", 10), ("iops-total-max", 20), ("bps-read", 10**12))


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ("iops-total=x", "iops-total=x digits"),
        ("iops-total=10,throttling.iops-read=5", "iops-total iops-read"),
        ("iops-total=10,throttling.iops-total-max=9", "iops-total-max"),
        ("bps-read-max=9", "bps-read"),
        ("iops=4", "throttling.iops"),
    ],
)
def test_what_can_not_be_is_one_line(limits: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        options.parse(["-drive", f"file=x,throttling.{limits}"])
    for word in named.split():
        assert word in str(error.value)
