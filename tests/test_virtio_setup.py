"""From configuration to devices: slots, properties, host ends, and one line for what the host refuses."""

from pathlib import Path

import pytest

from smp.config import DeviceConfig, DriveConfig, MachineConfig, SerialConfig
from smp.cpu import ConfigError
from smp.io_setup import io_config
from virtio.blk import Block
from virtio.chardev import FdChardev, Stdio, Unix
from virtio.image import Image, Overlay


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
