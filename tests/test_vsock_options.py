"""-device virtio-vsock-device: how it is written, what is refused, and the socket that it opens."""

import os
import socket
from pathlib import Path

import pytest

from smp import options
from smp.config import DeviceConfig, MachineConfig
from smp.cpu import ConfigError
from smp.io_setup import io_config
from virtio.vsock import Vsock


@pytest.mark.parametrize("name", ["virtio-vsock-device", "virtio-vsock-pci", "virtio-vsock"])
def test_qemus_spellings(name: str) -> None:
    config = options.parse(["-device", f"{name},guest-cid=3,path=/tmp/v"])
    (device,) = config.devices
    assert (device.driver, device.get("guest-cid"), device.get("path")) == ("virtio-vsock-device", "3", "/tmp/v")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("virtio-vsock-device", "needs guest-cid=N"),
        ("virtio-vsock-device,guest-cid=3", "needs path=SOCKET"),
        ("virtio-vsock-device,path=/tmp/v", "needs guest-cid=N"),
        ("virtio-vsock-device,path=/tmp/v,guest-cid=2", "guest-cid=2: must be 3 to 4294967294"),
        ("virtio-vsock-device,path=/tmp/v,guest-cid=4294967295", "must be 3 to 4294967294"),
        ("virtio-vsock-device,path=/tmp/v,guest-cid=0x10", "guest-cid=0x10: must be"),
        ("virtio-vsock-device,path=/tmp/v,guest-cid=" + "9" * 5000, "must be 3"),
        (f"virtio-vsock-device,guest-cid=3,path=/tmp/{'v' * 92}", "has over 96 bytes; shorten it"),
        ("vhost-vsock-device,guest-cid=3", "give virtio-vsock-device,guest-cid=N,path=SOCKET"),
        ("vhost-vsock-pci,guest-cid=3", "give virtio-vsock-device,guest-cid=N,path=SOCKET"),
    ],
)
def test_what_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options.parse(["-device", text])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def vsock(path: Path) -> MachineConfig:
    device = DeviceConfig("virtio-vsock-device", (("guest-cid", "4294967294"), ("path", str(path))))
    return MachineConfig(devices=(device,), serials=())


def test_the_socket_listens_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "v"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    io = io_config(vsock(path))
    device = io.devices[0]
    assert isinstance(device, Vsock) and device.config() == b"\xfe\xff\xff\xff\0\0\0\0"
    assert {device.host.listener.fileno(), device.host.cut} <= device.descriptors
    callers = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect(str(path))
        caller.close()
    io.close()
    assert not os.path.exists(path)


def test_places_where_no_socket_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="file: is there and is not a socket; choose another path"):
        io_config(vsock(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ConfigError, match="No such file or directory; choose another place"):
        io_config(vsock(tmp_path / "no" / "v"))
