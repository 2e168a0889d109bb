"""Images that are not raw: qemu-storage-daemon serves them, started and ended by the machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console import TIMEOUT
from fake_driver import Rig
from test_vhost_user import ram, request, reset_queue, wait

from smp import vhost_setup
from smp.config import DeviceConfig, DriveConfig
from smp.cpu import ConfigError
from smp.io_setup import ring_features
from virtio.blk import OK, Kind
from virtio.queue import Ram

__all__ = ["ram"]
ROOT = Path(__file__).resolve().parent.parent
DEVICE = DeviceConfig("virtio-blk-device", (("num-queues", "2"),))
needs_daemon = pytest.mark.skipif(
    not (shutil.which("qemu-storage-daemon") and shutil.which("qemu-img")), reason="no qemu-storage-daemon here"
)


def image(folder: Path, form: str = "qcow2", size: str = "8M") -> DriveConfig:
    path = folder / f"disk.{form}"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, str(path), size], check=True)
    return DriveConfig(path, format=form)


def is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


@needs_daemon
@pytest.mark.parametrize("form", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_a_disk_of_another_format(ram: Ram, tmp_path: Path, form: str) -> None:
    drive = image(tmp_path, form)
    for life in range(2):
        disk = vhost_setup.open_image(drive, DEVICE, False)
        rig = Rig(ram, disk).start()
        data = b"\x5a" * 4096
        if life == 0:
            assert request(rig, Kind.OUT, 100, data, queue=1) == [bytes([OK])]
            assert request(rig, Kind.FLUSH, 0) == [bytes([OK])]
        assert request(rig, Kind.IN, 100, 4096) == [data, bytes([OK])]
        pid = disk.host.helper.pid
        disk.close()
        assert is_gone(pid)
    subprocess.run(["qemu-img", "check", "-q", str(drive.file)], check=form != "vdi")


@needs_daemon
@pytest.mark.parametrize("rings", [(), (("packed", "on"), ("in_order", "on"))])
def test_a_daemon_that_is_killed_is_started_again(ram: Ram, tmp_path: Path, rings: tuple[tuple[str, str], ...]) -> None:
    given = DeviceConfig("virtio-blk-device", rings)
    disk = vhost_setup.open_image(image(tmp_path), given, False)
    disk.ring_features = ring_features(given, disk.ring_features) & disk.ring_limit
    try:
        rig = Rig(ram, disk).start()
        for n in range(5):
            data = bytes([n + 1]) * 512
            assert request(rig, Kind.OUT, n, data) == [bytes([OK])]
            assert request(rig, Kind.FLUSH, 0) == [bytes([OK])]
            pid = disk.host.helper.pid
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert request(rig, Kind.IN, n, 512) == [data, bytes([OK])]
            assert disk.host.helper.pid != pid
    finally:
        disk.close()


@needs_daemon
def test_a_queue_of_the_daemons_is_reset_alone(ram: Ram, tmp_path: Path) -> None:
    disk = vhost_setup.open_image(image(tmp_path), DEVICE, False)
    try:
        rig = Rig(ram, disk).start()
        for n in range(5):
            data = bytes([n + 1]) * 512
            assert request(rig, Kind.OUT, n, data, queue=1) == [bytes([OK])]
            old = reset_queue(rig, 1)
            assert request(rig, Kind.IN, n, 512) == [data, bytes([OK])]
            rig.rings[1] = type(old)(ram, old.size, old.table, old.event_index)
            rig.set_up(1, rig.rings[1])
            assert request(rig, Kind.IN, n, 512, queue=1) == [data, bytes([OK])]
        assert disk.host.session is not None
    finally:
        disk.close()


@needs_daemon
def test_a_snapshot_leaves_the_image_alone(ram: Ram, tmp_path: Path) -> None:
    drive = image(tmp_path)
    before = drive.file.read_bytes()
    disk = vhost_setup.open_image(drive, DEVICE, True)
    rig = Rig(ram, disk).start()
    assert request(rig, Kind.OUT, 0, b"x" * 512) == [bytes([OK])]
    assert request(rig, Kind.FLUSH, 0) == [bytes([OK])]
    assert request(rig, Kind.IN, 0, 512) == [b"x" * 512, bytes([OK])]
    folder = disk.host.folder
    assert folder and os.path.isdir(folder.name)
    path = folder.name
    disk.close()
    assert not os.path.exists(path) and drive.file.read_bytes() == before


@needs_daemon
def test_a_disk_for_reading_only_says_so(ram: Ram, tmp_path: Path) -> None:
    drive = image(tmp_path)
    disk = vhost_setup.open_image(DriveConfig(drive.file, format="qcow2", readonly=True), DEVICE, False)
    rig = Rig(ram, disk).start()
    assert disk.features & 1 << 5
    assert request(rig, Kind.OUT, 0, b"x" * 512) != [bytes([OK])]
    disk.close()


@needs_daemon
def test_what_the_daemon_says_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"no image" * 1000)
    with pytest.raises(ConfigError, match="not in qcow2 format; choose another file or format"):
        vhost_setup.open_image(DriveConfig(path, format="qcow2"), DEVICE, False)


def test_without_the_daemon_there_is_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"apt install .* or convert"):
        vhost_setup.open_image(DriveConfig(tmp_path / "disk", format="qcow2"), DEVICE, False)


@needs_daemon
@pytest.mark.boot
def test_linux_does_not_notice_that_the_daemon_was_killed(tmp_path: Path) -> None:
    """The last pass begins after the last kill: what was not flushed before one may be gone, as after a power cut."""
    drive = image(tmp_path, size="64M")
    script = """
set -e
dd if=/dev/urandom of=/tmp/x bs=1M count=24 2>/dev/null
echo begun
pass() { dd if=/tmp/x of=/dev/vda bs=64k oflag=direct conv=notrunc 2>/dev/null; }
until [ -e killed ]; do pass; done
pass
sync
echo 3 >/proc/sys/vm/drop_caches
test "$(sha256sum </tmp/x)" = "$(dd if=/dev/vda bs=1M count=24 2>/dev/null | sha256sum)"
dmesg | grep -c 'I/O error' || true
"""
    (tmp_path / "shared").mkdir()
    words = [sys.executable, "-m", "smp.guest", "boot", "-smp", "2", "-drive", f"file={drive.file},format=qcow2"]
    words += ["--share", str(tmp_path / "shared")]
    with subprocess.Popen([*words, "--run", script], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"begun\n"
            for _ in range(3):
                time.sleep(0.3)
                kill_daemon_of(str(drive.file))
            (tmp_path / "shared/killed").touch()
            out, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 0 and out == b"0\n"
    wait(lambda: not daemons_of(str(drive.file)))
    leaks = 3  # clusters that are taken and not used do no harm
    assert subprocess.run(["qemu-img", "check", "-q", str(drive.file)]).returncode in (0, leaks)


def daemons_of(file: str) -> list[int]:
    """The daemons that have this image."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue
            if file.encode() in text and text.split(b"\0")[0].endswith(b"qemu-storage-daemon"):
                found.append(int(entry))
    return found


def kill_daemon_of(file: str) -> None:
    for pid in daemons_of(file):
        os.kill(pid, signal.SIGKILL)
