"""From configuration to devices: slots, properties, host ends, and one line for what the host refuses."""

import os
from pathlib import Path

import pytest

from smp import options, share_options
from smp.config import DeviceConfig, DriveConfig, FsdevConfig, MachineConfig, SerialConfig, check
from smp.cpu import ConfigError
from smp.io_setup import io_config
from virtio.blk import Block
from virtio.chardev import FdChardev, Stdio, Unix
from virtio.features import EVENT_IDX
from virtio.host_owners import MODELS, SameOwners
from virtio.image import Image, Overlay
from virtio.ninep import Ninep
from virtio.rng import Rng


def test_disks_come_first_then_the_devices_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1024))
    io = io_config(
        MachineConfig(
            drives=(DriveConfig(tmp_path / "a", id="a", interface="none"), DriveConfig(tmp_path / "a", snapshot=True)),
            devices=(
                DeviceConfig("virtio-rng-device"),
                DeviceConfig("virtio-serial-device"),
                DeviceConfig("virtconsole", (("chardev", "c"),)),
                DeviceConfig("virtio-blk-device", (("drive", "a"), ("serial", "s1"))),
            ),
            chardevs=(SerialConfig("unix", str(tmp_path / "sock"), "c"),),
            serials=(SerialConfig("file", str(tmp_path / "log")),),
        )
    )
    assert [device.name for _, device in sorted(io.devices.items())] == ["blk", "blk", "rng", "console"]
    first, second = io.devices[0], io.devices[1]
    assert isinstance(first, Block) and isinstance(second, Block)
    assert (type(first.image), type(second.image), second.serial) == (Overlay, Image, b"s1")
    assert isinstance(io.devices[3].host, Unix)
    assert isinstance(io.serial, FdChardev)
    io.close()
    io.close()


def test_a_bus_names_the_slot_and_the_others_fill_what_is_free() -> None:
    rngs = [DeviceConfig("virtio-rng-device", (("bus", bus),)) for bus in ("", "virtio-mmio-bus.0", "pcie.0")]
    last = DeviceConfig("virtio-rng-device", (("bus", "virtio-mmio-bus.31"),))
    io = io_config(MachineConfig(devices=(*rngs, last), serials=()))
    assert sorted(io.devices) == [0, 1, 2, 31]
    with pytest.raises(ConfigError, match=r"virtio-mmio-bus\.31: is taken"):
        io_config(MachineConfig(devices=(last, last), serials=()))


def test_ring_features_are_offered_as_asked_for() -> None:
    given = DeviceConfig("virtio-rng-device", (("event_idx", "off"),))
    io = io_config(MachineConfig(devices=(given, DeviceConfig("virtio-rng-device")), serials=()))
    assert io.devices[0].ring_features == Rng.ring_features & ~EVENT_IDX
    assert io.devices[1].ring_features == Rng.ring_features


@pytest.mark.parametrize(("kind", "mux"), [("mon:stdio", True), ("stdio", False)])
def test_the_terminal_has_a_mux_when_asked_for(kind: str, mux: bool) -> None:
    serial = io_config(MachineConfig(serials=(SerialConfig(kind),))).serial
    assert isinstance(serial, Stdio)
    assert serial.mux is mux


def test_what_the_host_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        io_config(MachineConfig(drives=(DriveConfig(tmp_path / "missing"),)))
    with pytest.raises(ConfigError, match="unix"):
        io_config(MachineConfig(serials=(SerialConfig("unix", str(tmp_path / "no" / "sock")),)))


def test_a_shared_folder_has_its_tag_and_model(tmp_path: Path) -> None:
    io = io_config(options.parse(["-virtfs", f"local,path={tmp_path},mount_tag=t,security_model=passthrough,readonly"]))
    (device,) = io.devices.values()
    assert isinstance(device, Ninep)
    tree = device.session.tree
    assert (device.tag, type(tree.owners), tree.readonly, tree.multidevs) == (b"t", SameOwners, True, "warn")
    assert MODELS.keys() == set(share_options.MODELS)


def test_attributes_need_a_file_system_that_has_them() -> None:
    folder = FsdevConfig(Path("/proc"), "f", "mapped-xattr", readonly=True)
    device = DeviceConfig("virtio-9p-device", (("fsdev", "f"), ("mount_tag", "t")))
    with pytest.raises(ConfigError, match=r"no extended attributes.*security_model=none"):
        io_config(MachineConfig(fsdevs=(folder,), devices=(device,)))


def test_passthrough_takes_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = ["-kernel", __file__, "-virtfs", f"local,path={tmp_path},mount_tag=t,security_model=passthrough"]
    with pytest.raises(ConfigError, match=r"root.*mapped-xattr"):
        check(options.parse(line))
