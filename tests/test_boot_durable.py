"""What Linux was told is on its disks is there, whatever happens to the processes and the files behind them.

Five disks are written at once (tests/linux/durable.c) while the I/O process is stopped and continued, back-ends are
killed, a disk's driver is unbound in the middle, the file system under another is full, and the guest resets itself.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
import zlib
from pathlib import Path
from struct import unpack_from

import psutil
import pytest
from console import COMMAND, TIMEOUT, Console
from test_vhost_image import kill_daemon_of, needs_daemon
from test_vhost_user import backend_process

from smp.guest import default_guest, run_script
from smp.initramfs import overlay

pytestmark = pytest.mark.boot

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("HARTBEAT_SEED", "1"))
SIZE, DISK_BYTES, ROOM = 4096, 8 << 20, "600k"
MAGIC = 0x656C_6261_7275_6421
LAST = DISK_BYTES // SIZE - 1
FIRST_LIFE, SECOND_LIFE = 8, 6  # seconds, and twice as many as Linux took to come up: on a busy host all takes longer
SCRIPT = f"""
dmesg -n 1
more=$((2 * $(cut -d. -f1 /proc/uptime)))
if [ "$(dd if=/dev/vda bs={SIZE} skip={LAST} count=1 2>/dev/null | head -c 6)" = second ]; then
    seconds=$(({SECOND_LIFE} + more)) life=second
else
    printf second | dd of=/dev/vda bs={SIZE} seek={LAST} conv=notrunc,fsync 2>/dev/null
    (sleep $(({FIRST_LIFE} + more)); reboot -f) &
    seconds=1000 life=first
fi
echo "life $life;"
for disk in vda vdb vdc vdd; do durable $disk /dev/$disk $seconds & done
end=$(($(date +%s) + seconds))
device=$(basename $(readlink -f /sys/block/vde/device))
cd /sys/bus/virtio/drivers/virtio_blk
while [ $(date +%s) -lt $end ]; do
    durable vde /dev/$(ls $device/block) 3 &
    sleep 1.$((RANDOM % 10))
    echo $device >unbind
    wait $!
    echo $device >bind
done
wait
echo "over;"
"""
LINE = re.compile(r"(durable|failed) (vd.)((?: \d+:\d+)*);")
# A mount of its own, whose file system has room for a part of the disk only; it is gone with the process.
SMALL = (
    'mount -t tmpfs -o size=$1 none "$2" && truncate -s $3 "$2/full" || exit 77; place=$2; shift 3; "$@"; status=$?; '
)
SMALL += 'cp --sparse=always "$place/full" "$place.full"; exit $status'


def program(folder: Path) -> bytes:
    """The writer."""
    words = ["riscv64-linux-gnu-gcc", "-O2", "-static", "-pthread", "-Wall", "-o", folder / "durable"]
    built = subprocess.run([*words, ROOT / "tests/linux/durable.c"], capture_output=True, text=True, timeout=240)
    if built.returncode:
        pytest.skip("no C library for riscv64 here")
    return (folder / "durable").read_bytes()


def in_small_file_system(folder: Path) -> list[str]:
    """The words before a command that has `folder`/full in a file system that is too small for it."""
    (folder / "small").mkdir()
    space = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*space, "mount", "-t", "tmpfs", "none", folder / "small"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    return [*space, "sh", "-c", SMALL, "sh", ROOM, str(folder / "small"), str(DISK_BYTES)]


def options(folder: Path, chance: random.Random) -> list[str]:
    """The machine, its disks made."""
    guest = default_guest()
    initrd = overlay(guest.initrd.read_bytes(), {"bin/durable": program(folder), "bin/stress": SCRIPT.encode()})
    (folder / "initrd").write_bytes(initrd)
    for name in ("plain", "reset", "served"):
        (folder / name).write_bytes(bytes(DISK_BYTES))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "image", str(DISK_BYTES)], check=True)
    files = (("plain", "raw"), ("image", "qcow2"), ("small/full", "raw"), ("reset", "raw"))
    words = ["-kernel", str(guest.kernel), "-initrd", str(folder / "initrd"), "-append", run_script("sh /bin/stress")]
    words += ["-smp", "2", "-m", "512M", "-nographic"]
    for n, (file, form) in enumerate(files):
        words += ["-drive", f"if=none,id=d{n},file={folder / file},format={form}"]
    rings = [chance.choice(["", ",packed=on", ",packed=on,in_order=on"]) for _ in range(3)]
    through = ",write-cache=off"  # what the daemon keeps back would be gone with it
    return [
        *words,
        *("-device", f"virtio-blk-device,bus=virtio-mmio-bus.0,drive=d0{rings[0]}"),
        *("-device", f"virtio-blk-device,bus=virtio-mmio-bus.1,drive=d1{through}{rings[1]}"),
        *("-device", "virtio-blk-device,bus=virtio-mmio-bus.2,drive=d2"),
        *("-chardev", f"socket,id=c0,path={folder / 'socket'},reconnect-ms=50"),
        *("-device", f"vhost-user-blk-device,bus=virtio-mmio-bus.3,chardev=c0{rings[2]}"),
        *("-device", "virtio-blk-device,bus=virtio-mmio-bus.4,drive=d3"),
    ]


def io_process(console: Console) -> psutil.Process | None:
    """The first child of the supervisor's that is no helper; there is another after a reset."""
    with contextlib.suppress(psutil.Error, IndexError):
        above = psutil.Process(console.process.pid)
        while "smp" not in above.cmdline():
            (above,) = above.children()
        mine = [child for child in above.children() if "smp" in child.cmdline()]
        return min(mine, key=lambda child: child.pid)
    return None


def freeze(console: Console, seconds: float) -> None:
    process = io_process(console)
    if process:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)


def trouble(console: Console, folder: Path, modes: list[str], chance: random.Random) -> int:
    """Make it until the guest is done; how many back-ends were killed."""
    kills = 0
    served = backend_process(folder, "served", *modes)
    try:
        deadline = time.monotonic() + TIMEOUT
        while b"over;" not in console.output and console.process.poll() is None:
            assert time.monotonic() < deadline, f"the guest does not end after {kills} kills"
            console.collect(chance.random() * 0.05)
            freeze(console, chance.choice([0.002, 0.02, 0.2]) * chance.random())
            if b"life" not in console.output or chance.random() > 0.05:
                continue
            kills += 1
            if chance.random() < 0.5:
                kill_daemon_of(str(folder / "image"))
            else:
                served.kill()
                served.wait()
                console.collect(chance.random() * 0.2)
                served = backend_process(folder, "served", *modes)
        assert console.wait(TIMEOUT) == 0
    finally:
        served.kill()
        served.wait()
    return kills


def told(log: str) -> tuple[dict[str, dict[int, int]], dict[str, set[int]]]:
    """By disk, the blocks that last with their numbers, and those of which a write has ever failed."""
    lasting: dict[str, dict[int, int]] = {f"vd{letter}": {} for letter in "abcde"}
    failed: dict[str, set[int]] = {name: set() for name in lasting}
    for what, name, text in LINE.findall(log):
        for pair in text.split():
            block, number = map(int, pair.split(":"))
            if what == "durable":
                lasting[name][block] = number
            else:
                lasting[name].pop(block, None)
                failed[name].add(block)
    return lasting, failed


def lost(content: bytes, lasting: dict[int, int]) -> list[str]:
    """What the image lacks."""
    found = []
    for block, number in lasting.items():
        data = content[block * SIZE : (block + 1) * SIZE]
        magic, own, there = unpack_from("<QQQ", data)
        if (magic, own) != (MAGIC, block) or unpack_from("<I", data, SIZE - 4)[0] != zlib.crc32(data[:-4]):
            found.append(f"block {block}, number {number}: something else")
        elif there < number:
            found.append(f"block {block}: number {there}, not {number}")
    return found


@needs_daemon
def test_what_was_durable_is_there(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    modes = chance.choice([[], ["inflight"], ["full"], ["full", "inflight"]])
    command = (*in_small_file_system(tmp_path), *COMMAND)
    words = options(tmp_path, chance)
    first = backend_process(tmp_path, "served", *modes)
    with Console(*words, command=command) as console:
        try:
            console.expect("life first;", TIMEOUT)
            first.kill()
            first.wait()
            kills = trouble(console, tmp_path, modes, chance)
        finally:
            first.kill()
            log, errors = console.text(), console.errors.decode()
            (tmp_path / "log").write_text(log + errors)
    print(f"{kills} kills; " + " ".join(re.findall(r"done [^;]*;", log)))
    assert log.count("life first;") == log.count("life second;") == 1 and "bad" not in log
    lasting, failed = told(log)
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "image", tmp_path / "raw"], check=True)
    files = {"vda": "plain", "vdb": "raw", "vdc": "small.full", "vdd": "served", "vde": "reset"}
    for name, file in files.items():
        assert len(lasting[name]) > 10, f"{name} was hardly written"
        assert lost((tmp_path / file).read_bytes(), lasting[name]) == [], name
        torn = {int(block) for block in re.findall(rf"torn {name} (\d+);", log)}
        assert torn <= failed[name], f"{name}: pieces of writes that did not fail"
    assert failed["vdc"] and "No space left" in errors
    # While Linux restarts, its driver has no disks any more.
    _, later = told(log[log.index("life second;") :])
    assert not (later["vda"] | later["vdb"] | later["vdd"])
    assert errors.count("is there again") <= 2 * kills + 10
