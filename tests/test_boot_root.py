"""Linux whose root file system is on a disk: `root=` with the default guest's kernel and initramfs."""

import shutil
from pathlib import Path

import pytest
from console import Console
from test_boot import PROMPT, TIMEOUT, options

from smp.debian_disk import Disk, run_tool
from smp.guest import Guest, default_guest

pytestmark = pytest.mark.boot

# What runs as process 1: says what it was given, and what it finds.
INIT = """\
#!/bin/sh
echo "process $$ of $(cat /etc/name): $*"
grep -c ' / ext4 rw' /proc/mounts | sed 's/^/root mounts: /'
[ -b /dev/vda ] && [ -d /sys/bus/virtio ] && echo "dev and sys are there"
modprobe virtio_balloon && grep -o '^virtio_balloon' /proc/modules
echo written >/etc/written
sync
stty raw -echo
poweroff -f
"""


@pytest.fixture(scope="module")
def guest() -> Guest:
    return default_guest()


@pytest.fixture
def disk(guest: Guest, tmp_path: Path) -> Disk:
    """A system of busybox and an init, without modules, called `small`."""
    tree = tmp_path / "tree"
    for folder in ("bin", "sbin", "dev", "proc", "sys", "run", "etc"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(guest.kernel.parent / "busybox", tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    for name in ("sh", "cat", "grep", "sed", "modprobe", "sync", "stty", "poweroff"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc/name").write_text("small\n")
    (tree / "sbin/init").write_text(INIT)
    (tree / "sbin/init").chmod(0o755)
    image = tmp_path / "image"
    run_tool(["mke2fs", "-q", "-t", "ext4", "-L", "small", "-d", str(tree), str(image), "32M"])
    return Disk(image)


@pytest.mark.parametrize("root", ["/dev/vda", "LABEL=small"])
def test_the_system_on_a_disk_is_the_one_that_runs(guest: Guest, disk: Disk, root: str) -> None:
    append = f"console=ttyS0 root={root} rw -- one two"
    with Console(*options(guest, 2, append, "-drive", f"file={disk.path},format=raw")) as console:
        assert console.wait(TIMEOUT) == 0
        log = console.text()
    for said in ("process 1 of small: one two", "root mounts: 1", "dev and sys are there", "virtio_balloon"):
        assert f"\n{said}\n" in log
    disk.check()
    assert disk.read("/etc/written") == "written\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("root=/dev/vdb", "root=/dev/vdb: no such disk"),
        ("root=/dev/vda rootfstype=vfat", "root=/dev/vda: can't be mounted"),
        ("root=/dev/vda init=/none", "root=/dev/vda: has no /none"),
    ],
)
def test_what_is_not_there_is_said_and_leaves_a_shell(guest: Guest, disk: Disk, words: str, says: str) -> None:
    append = f"console=ttyS0 {words}"
    with Console(*options(guest, 2, append, "-drive", f"file={disk.path},format=raw"), terminal=True) as console:
        console.expect(f"hartbeat: {says}", TIMEOUT)
        console.expect(PROMPT, TIMEOUT)
