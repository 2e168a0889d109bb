"""Back-ends of the user's own: the worked example as it stands in docs/BACKENDS.md, and mistakes in such a class."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest
from fake_driver import Rig
from forked_io import Hart, finish, fork_io, io_memory

from smp import cli, options
from smp.config import MachineConfig
from smp.config_check import check
from smp.cpu import ConfigError
from smp.io_setup import io_config
from virtio.features import IN_ORDER, RING_PACKED
from virtio.queue import Ram

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/BACKENDS.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def ram() -> Iterator[Ram]:
    with io_memory() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with the example in it."""
    (tmp_path / "memory_disk.py").write_text(BLOCKS[0])
    (tmp_path / "struct.py").write_text("raise SystemExit('hides a module')")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def devices(*arguments: str) -> dict:
    return io_config(options.parse(["-serial", "none", *arguments])).devices


def ask(rig: Rig, kind: int, sector: int, *parts: bytes | int) -> tuple[int, bytes]:
    _, written = rig.ask(pack("<IIQ", kind, 0, sector), *parts, 1)
    return written[-1][0], b"".join(written[:-1])


@pytest.mark.parametrize("rings", ["", ",packed=on,in_order=on"])
def test_the_worked_example_works(place: Path, ram: Ram, rings: str) -> None:
    device = devices("-device", f"py:memory_disk.MemoryDisk,size=65536,bus=virtio-mmio-bus.5{rings}")[5]
    assert bool(device.ring_features & RING_PACKED) == bool(device.ring_features & IN_ORDER) == bool(rings)
    child = fork_io(io_config(MachineConfig(backends=(device,), serials=())))
    rig = Hart(ram, device, 0).start()
    assert rig.read(0x100, 8) == 128
    assert ask(rig, 1, 3, b"a" * 512, b"b" * 512) == (0, b"")
    assert ask(rig, 0, 2, 1024, 512) == (0, bytes(512) + b"a" * 512 + b"b" * 512)
    assert ask(rig, 0, 127, 1024)[0] == ask(rig, 1, 1 << 60, b"x" * 512)[0] == 1
    assert finish(child) == 0


def test_the_example_is_as_short_as_promised() -> None:
    code = [line for line in BLOCKS[0].split("class ")[1].splitlines() if line.strip()]
    assert len(code) <= 25


def test_the_python_of_the_document_starts_a_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "Image").write_bytes(b"\x6f\0\0\0")
    started: list[MachineConfig] = []
    monkeypatch.setattr(cli, "start", lambda config: check(config) or started.append(config))
    monkeypatch.syspath_prepend(place)
    (place / "struct.py").unlink()
    exec(BLOCKS[1], {})
    (device,) = io_config(started[0]).devices.values()
    assert len(device.data) == 4 << 20


MODULE = """
from virtio.device import Device
class Good(Device):
    kind, queue_sizes = 42, (8,)
    def __init__(self, count: int = 1, ratio: float = 1.0, flag: bool = False, text="", packed="") -> None:
        self.given = count, ratio, flag, text, packed
class Needs(Good):
    def __init__(self, path):
        pass
class Fails(Good):
    def __init__(self):
        open("/nowhere/file")
class Kindless(Good):
    kind = 0
class Queueless(Good):
    queue_sizes = ()
class Odd(Good):
    queue_sizes = (8, 9)
class Large(Good):
    def config(self): return bytes(257)
class Wrong(Good):
    def config(self): return self.nothing
class Alien:
    pass
"""


def test_properties_are_the_constructors_arguments(place: Path) -> None:
    (place / "mine.py").write_text(MODULE)
    found = devices("-device", "py:mine.Good,count=7,ratio=0.5,flag=on,text=a,,b,id=x", "-device", "py:mine.Good")
    assert [device.given for device in found.values()] == [(7, 0.5, True, "a,b", ""), (1, 1.0, False, "", "")]
    assert not any(device.name for device in found.values()), "the class's name is what messages call it then"


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("py:mine", "py:mine MODULE.CLASS"),
        ("py:.Good", "py:.Good MODULE.CLASS"),
        ("py:nowhere.Good", "nowhere PYTHONPATH"),
        ("py:broken.Good", "SyntaxError"),
        ("py:mine.Bad", "mine Bad virtio.device.Device"),
        ("py:mine.Alien", "Alien virtio.device.Device"),
        ("py:mine.Good,cuont=7", "cuont count"),
        ("py:mine.Good,count=many", "many number"),
        ("py:mine.Good,ratio=many", "ValueError many"),
        ("py:mine.Good,flag=1", "flag=1 flag=on"),
        ("py:mine.Good,packed=maybe", "packed=maybe packed=on"),
        ("py:mine.Good,count=1,count=2", "count twice"),
        ("py:mine.Needs", "path=VALUE"),
        ("py:mine.Fails", "FileNotFoundError /nowhere/file mine.py line 12"),
        ("py:mine.Kindless", "kind 0"),
        ("py:mine.Queueless", "queue_sizes ()"),
        ("py:mine.Odd", "(8, 9) 1024"),
        ("py:mine.Large", "257 256"),
        ("py:mine.Wrong", "config() AttributeError nothing mine.py"),
    ],
)
def test_a_mistake_is_one_line(place: Path, device: str, words: str) -> None:
    (place / "mine.py").write_text(MODULE)
    (place / "broken.py").write_text("class Good(:\n")
    with pytest.raises(ConfigError) as error:
        devices("-device", device)
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words.split()), text
