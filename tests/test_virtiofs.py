"""A folder served by virtiofsd: what Linux does there is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import TIMEOUT
from test_vhost_user import parsed, wait

from smp import vhost_setup
from smp.config import VIRTIOFSD, DeviceConfig, FsdevConfig, MachineConfig
from smp.config_check import check
from smp.cpu import ConfigError

ROOT = Path(__file__).resolve().parent.parent
DEVICE = DeviceConfig("vhost-user-fs-device", (("fsdev", "f"), ("tag", "files")))
needs_virtiofsd = pytest.mark.skipif(vhost_setup.find_virtiofsd() is None, reason="no virtiofsd here")


def servers_of(folder: str) -> list[int]:
    """Processes that have the folder on their command line, but for the machine's."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue
            if folder.encode() in words and b"virtiofsd\0" in words and b"python" not in words:
                found.append(int(entry))
    return found


@needs_virtiofsd
def test_virtiofsd_ends_with_the_device(tmp_path: Path) -> None:
    config = MachineConfig(fsdevs=(FsdevConfig(tmp_path, "f", VIRTIOFSD),))
    made = vhost_setup.open_fs(DEVICE, config)
    assert servers_of(str(tmp_path)) and made.config().startswith(b"files\0")
    made.close()
    wait(lambda: not servers_of(str(tmp_path)))


@needs_virtiofsd
@pytest.mark.boot
def test_linux_works_in_a_virtio_file_system(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(data := os.urandom(3_000_000))
    script = """
set -e
mkdir -p /mnt
mount -t virtiofs files /mnt
cd /mnt
cp in copy && cmp in copy
mkdir -p d/e && seq 1 300 | while read n; do echo $n >d/e/$n; done
test "$(cat d/e/* | sort -n | tail -n 1)" = 300
mv copy d/moved; ln -s moved d/link; rm -r d/e
cmp in d/link
cd / && umount /mnt
echo done
"""
    words = [sys.executable, "-m", "smp.guest", "boot", "-smp", "2", "-fsdev", f"virtiofsd,id=f,path={tmp_path}"]
    words += ["-device", "vhost-user-fs-pci,fsdev=f,tag=files", "--run", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (0, b"done\n"), done.stderr
    assert (tmp_path / "d/moved").read_bytes() == data and os.readlink(tmp_path / "d/link") == "moved"
    assert not (tmp_path / "d/e").exists()
    wait(lambda: not servers_of(str(tmp_path)))


def test_without_virtiofsd_there_is_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_setup, "find_virtiofsd", lambda: None)
    config = MachineConfig(fsdevs=(FsdevConfig(tmp_path, "f", VIRTIOFSD),))
    with pytest.raises(ConfigError, match="apt install virtiofsd"):
        vhost_setup.open_fs(DEVICE, config)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("-fsdev virtiofsd,path=/tmp", "id="),
        ("-fsdev virtiofsd,id=f,path=/tmp", "no device vhost-user-fs-device"),
        ("-fsdev virtiofsd,id=f,path=/none -device vhost-user-fs-pci,fsdev=f,tag=a", "/none no such folder"),
        ("-fsdev virtiofsd,id=f,path=/tmp -device virtio-9p-pci,fsdev=f,mount_tag=a", "fsdev=f vhost-user-fs-device"),
        ("-fsdev local,id=f,path=/tmp,security_model=none -device vhost-user-fs-pci,fsdev=f,tag=a", "virtio-9p-device"),
        ("-device vhost-user-fs-pci,tag=a", "one of chardev=ID fsdev=ID"),
        ("-device vhost-user-fs-pci,fsdev=g,tag=a", "fsdev=g virtiofsd,path"),
        ("-fsdev virtiofsd,id=f,path=/tmp,security_model=none", "security_model"),
    ],
)
def test_what_can_not_be_is_one_line(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(parsed(text))
    for word in named.split():
        assert word in str(error.value)
