"""From configuration to devices: slots, properties, host ends, and one line for what the host refuses."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from smp import options, share_options
from smp.config import (
    DeviceConfig,
    DriveConfig,
    FsdevConfig,
    IothreadConfig,
    MachineConfig,
    NetdevConfig,
    SerialConfig,
)
from smp.config_check import check
from smp.cpu import ConfigError
from smp.io_setup import io_config
from virtio.blk import F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, Block
from virtio.chardev import FdChardev, Output, Stdio
from virtio.charsocket import Socket
from virtio.features import EVENT_IDX
from virtio.host_owners import MODELS, SameOwners
from virtio.image import Image, Overlay
from virtio.net import Net
from virtio.netfeatures import F_CSUM, F_HOST_TSO4, F_HOST_USO, F_MTU
from virtio.nethub import HubPort
from virtio.netstream import Stream
from virtio.ninep import Ninep
from virtio.rng import Rng
from virtio.sockets import connect

LISTENING = (("server", "on"), ("wait", "off"))


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
            chardevs=(SerialConfig("unix", str(tmp_path / "sock"), "c", LISTENING),),
            serials=(SerialConfig("file", str(tmp_path / "log")),),
        )
    )
    assert [device.name for _, device in sorted(io.devices.items())] == ["blk", "blk", "rng", "console"]
    first, second = io.devices[0], io.devices[1]
    assert isinstance(first, Block) and isinstance(second, Block)
    assert (type(first.image), type(second.image), second.serial) == (Overlay, Image, b"s1")
    assert isinstance(io.devices[3].hosts()[0], Socket)
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


def test_a_disks_properties_are_what_the_driver_sees(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1024))
    names = ("write-cache", "config-wce", "discard", "write-zeroes")
    properties = (("drive", "a"), ("queue-size", "64"), ("num-queues", "2"), *((name, "off") for name in names))
    drives = (DriveConfig(tmp_path / "a", id="a", interface="none"),)
    io = io_config(MachineConfig(drives=drives, devices=(DeviceConfig("virtio-blk-device", properties),), serials=()))
    disk = io.devices[0]
    assert isinstance(disk, Block)
    assert disk.queue_sizes == (64, 64) and not disk.writeback
    assert not disk.features & (F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES) and disk.features & F_FLUSH
    io.close()


def test_devices_go_to_their_iothreads_and_the_others_in_turn() -> None:
    named = DeviceConfig("virtio-rng-device", (("iothread", "b"),))
    other = DeviceConfig("virtio-rng-device")
    threads = IothreadConfig("a"), IothreadConfig("b", poll_max_ns=7, poll_grow=3, poll_shrink=0)
    config = MachineConfig(devices=(other, named, other, other), iothreads=threads, spread=2, poll_max_ns=9, serials=())
    io = io_config(config)
    assert io.owners == {0: 3, 1: 2, 2: 4, 3: 3}
    assert [(each.most, each.grow, each.shrink) for each in io.polling] == [
        (9, 2, 4), (9, 2, 4), (7, 3, 0), (9, 2, 4), (9, 2, 4)
    ]  # fmt: skip
    assert io_config(MachineConfig(devices=(other,), serials=())).owners == {}


def test_terminal_and_network_stay_with_the_main_process() -> None:
    line = "-serial none -netdev hubport,hubid=0,id=n -device virtio-net-device,netdev=n -device virtio-serial-device"
    line += " -chardev stdio,id=c -device virtconsole,chardev=c -device virtio-rng-device -M virt,iothreads=1"
    io = io_config(options.parse(line.split()))
    assert [io.devices[slot].name for slot in io.owners] == ["rng"]
    io.close()


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


def test_a_descriptor_takes_output_and_keeps_its_mode(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        file.write(b"before ")
        file.flush()
        serial = io_config(MachineConfig(serials=(SerialConfig("fd", str(file.fileno())),))).serial
        serial.start()
        serial.write(b"after")
        assert serial.interest() == {} and serial.size() == (0, 0) and os.get_blocking(file.fileno())
        serial.close()
    assert (tmp_path / "out").read_bytes() == b"before after"


def test_the_machine_ends_when_nobody_reads_a_descriptor() -> None:
    ended: list[int] = []
    reader, writer = os.pipe()
    serial = io_config(MachineConfig(serials=(SerialConfig("fd", str(writer)),))).serial
    assert isinstance(serial, Output)
    serial.quit = lambda: ended.append(1)
    serial.start()
    serial.write(b"read")
    assert os.read(reader, 10) == b"read" and not ended
    os.close(reader)
    serial.write(b"lost")
    assert ended == [1]
    os.close(writer)


def test_what_the_host_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        io_config(MachineConfig(drives=(DriveConfig(tmp_path / "missing"),)))
    with pytest.raises(ConfigError, match="unix"):
        io_config(MachineConfig(serials=(SerialConfig("unix", str(tmp_path / "no" / "sock"), "", LISTENING),)))


def test_a_shared_folder_has_its_tag_and_model(tmp_path: Path) -> None:
    io = io_config(options.parse(["-virtfs", f"local,path={tmp_path},mount_tag=t,security_model=passthrough,readonly"]))
    (device,) = io.devices.values()
    assert isinstance(device, Ninep)
    tree = device.session.tree
    assert (device.tag, type(tree.owners), tree.readonly, tree.multidevs) == (b"t", SameOwners, True, "warn")
    assert MODELS.keys() == set(share_options.MODELS)


def test_mapped_files_have_the_modes_asked_for(tmp_path: Path) -> None:
    line = f"local,path={tmp_path},mount_tag=t,security_model=mapped-xattr,fmode=0640,dmode=0o751"
    (device,) = io_config(options.parse(["-virtfs", line])).devices.values()
    assert isinstance(device, Ninep)
    owners = device.session.tree.owners
    assert [owners.first_mode(mode) for mode in (0o100777, 0o40777, 0o120777)] == [0o640, 0o751, 0o640]


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


def stream(name: str) -> NetdevConfig:
    return NetdevConfig("hubport", name, (("hubid", "0"),))


def test_cards_get_their_addresses_in_order_and_after_the_given_ones() -> None:
    given = (("mac", "52:54:00:12:34:57"),)
    devices = [DeviceConfig("virtio-net-device", (("netdev", name), *more)) for name, more in (("a", ()), ("b", given))]
    nic = (NetdevConfig("hubport", "", (("hubid", "0"),)), DeviceConfig("virtio-net-device"))
    config = MachineConfig(netdevs=(stream("a"), stream("b")), devices=tuple(devices), nics=(nic, nic), serials=())
    cards = [device for device in io_config(config).devices.values() if isinstance(device, Net)]
    assert [card.own_mac[-1] for card in cards] == [0x56, 0x58, 0x59, 0x57]
    assert len({id(card.host.ports) for card in cards if isinstance(card.host, HubPort)}) == 1


def test_a_port_of_a_hub_is_watched_in_place_of_its_uplink(tmp_path: Path) -> None:
    where = (("addr.type", "unix"), ("addr.path", str(tmp_path / "s")), ("server", "on"))
    up = NetdevConfig("hubport", "up", (("hubid", "0"), ("netdev", "world")))
    config = MachineConfig(
        netdevs=(
            up,
            NetdevConfig("stream", "world", where),
            stream("a"),
            NetdevConfig("hubport", "b", (("hubid", "1"),)),
        ),
        devices=(DeviceConfig("virtio-net-device", (("netdev", "a"),)),),
        serials=(),
    )
    io = io_config(config)
    (port, other) = (host for host in io.others if isinstance(host, HubPort))
    assert (port.name, other.name) == ("up", "b") and isinstance(port.uplink, Stream)
    assert port.ports is io.devices[0].host.ports and other.ports == [other]
    io.close()
    assert not (tmp_path / "s").exists()


def test_properties_of_a_card_reach_it() -> None:
    given = (("netdev", "a"), ("host_mtu", "1400"), ("csum", "off"), ("gso", "off"), ("rx_queue_size", "512"))
    io = io_config(
        MachineConfig(netdevs=(stream("a"),), devices=(DeviceConfig("virtio-net-device", given),), serials=())
    )
    card = io.devices[0]
    assert card.features & (F_CSUM | F_HOST_TSO4 | F_HOST_USO | F_MTU) == F_MTU
    assert card.queue_sizes == (512, 256, 64)
    assert card.config()[10:12] == (1400).to_bytes(2, "little")


@pytest.mark.parametrize("line", ["unix:nowhere", "tcp:127.0.0.1:1"])
def test_nobody_to_connect_to(line: str) -> None:
    with pytest.raises(ConfigError, match=f"-serial {line}: .*reconnect=1"):
        io_config(options.parse(["-serial", line]))
    io_config(options.parse(["-serial", f"{line},reconnect=1"])).close()


def test_a_server_waits_for_somebody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sock"
    clients: list[socket.socket] = []

    def come() -> None:
        while not clients:
            with contextlib.suppress(OSError):
                clients.append(connect((socket.AF_UNIX, str(path))))

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    io = io_config(options.parse(["-serial", f"unix:{path},server=on"]))
    thread.join()
    assert f"waiting for a connection to unix:{path}" in capfd.readouterr().err
    io.serial.start()
    io.serial.write(b"hello")
    assert clients[0].recv(9) == b"hello"
    io.close()
    clients[0].close()
    assert not path.exists()
