"""Linux, unmodified, on the whole machine: every CPU works, disks and lines carry, and the end is orderly.

The guest is the default one (smp/guest.py), which is fetched when the cache lacks it.
"""

import hashlib
import os
import random
import re
from pathlib import Path

import pytest
from console import TIMEOUT, Console, gone

from smp.guest import APPEND, Guest, default_guest, run_script
from smp.host import default_engine

pytestmark = pytest.mark.boot

TROUBLE = re.compile(r"Oops|BUG:|rcu.*stall|WARNING:|soft lockup|Call Trace|Unable to handle|hung_task")
PROMPT = r"root@hartbeat:[^\n]*# "

# Wakes every CPU from every other one, then as many processes as CPUs compute at once.
WORK = """
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset $(printf %x $((1 << cpu))) true; done
for n in $(seq $(nproc)); do
    (head -c 262144 /dev/zero | tr '\\0' "$n" | sha256sum >/tmp/$n; grep -c . /proc/interrupts >/dev/null) &
done
wait
for n in $(seq $(nproc)); do echo "sum $n $(cut -d' ' -f1 /tmp/$n)"; done
echo "online $(cat /sys/devices/system/cpu/online)"
grep -E '^ *CPU0|IPI|timer' /proc/interrupts
dmesg -r | grep -E '^<[0-3]>'
"""


@pytest.fixture(scope="module")
def guest() -> Guest:
    return default_guest()


def options(guest: Guest, harts: int, append: str, *more: str) -> list[str]:
    named = ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", append]
    return ["-smp", str(harts), "-m", "1G", "-nographic", *named, *more]


def run(guest: Guest, harts: int, script: str, *more: str) -> str:
    """What the script printed, and stderr; the guest ran it and powered down, and nothing went wrong on the way."""
    with Console(*options(guest, harts, run_script(script), *more)) as console:
        console.close_input()
        status = console.wait(TIMEOUT)
        log = console.text()
        assert status == 0
        assert "reboot: Power down" in log
        assert not TROUBLE.search(log), TROUBLE.findall(log)
        assert "hartbeat: exit status" in log
        return log + console.errors.decode(errors="replace")


def check_work(log: str, harts: int) -> None:
    """Every CPU is online and took IPIs, and the sums are right."""
    assert f"online {'0' if harts == 1 else f'0-{harts - 1}'}\n" in log
    for n in range(1, harts + 1):
        # tr takes the first digit of a number only.
        assert f"sum {n} {hashlib.sha256(str(n)[0].encode() * 262144).hexdigest()}\n" in log
    rows = re.findall(r"^ *IPI\d+: +((?:\d+ +)+)", log, re.MULTILINE)
    totals = [sum(map(int, column)) for column in zip(*(row.split() for row in rows), strict=True)]
    assert len(totals) == harts
    if harts > 1:
        assert min(totals) > 0, totals


@pytest.mark.parametrize("harts", [1, 2, 4, 8])
def test_linux_runs_on_every_hart(guest: Guest, harts: int) -> None:
    log = run(guest, harts, WORK)
    check_work(log, harts)
    assert re.search(r"SBI specification v\d", log)


@pytest.mark.parametrize("harts", [1, 2, 4, 8])
@pytest.mark.parametrize("firmware", ["fw_dynamic.bin", "fw_jump.bin"])
def test_linux_runs_under_opensbi(guest: Guest, firmware: str, harts: int) -> None:
    assert guest.firmware_dir
    log = run(guest, harts, WORK, "-bios", str(guest.firmware_dir / firmware))
    check_work(log, harts)
    assert "OpenSBI v" in log
    assert f"Platform HART Count         : {harts}\n" in log


@pytest.mark.skipif(default_engine() == "interp", reason="the interpreter is the default here")
@pytest.mark.parametrize("harts", [1, 4, 8])
def test_linux_runs_interpreted(guest: Guest, harts: int) -> None:
    check_work(run(guest, harts, WORK, "--engine", "interp"), harts)


@pytest.mark.skipif(default_engine() == "interp", reason="this host can't run the translator")
def test_linux_runs_in_a_small_code_cache(guest: Guest) -> None:
    """It is emptied again and again while both harts boot and work."""
    log = run(guest, 2, WORK, "--engine", "jit", "-accel", "tcg,tb-size=4", "--stats")
    check_work(log, 2)
    assert re.search(r"emptied \d+ times", log), log[-2000:]


DEVICES = """
cd /sys/block; for d in vd*; do echo "disk $d $(cat $d/size) $(cat $d/ro)"; done
echo "vda $(sha256sum </dev/vda)"
echo "packed $(cut -c35 /sys/block/vda/device/features)"
dd if=/dev/vda of=/dev/vdb bs=64k conv=fsync 2>/dev/null
head -c 4096 /dev/zero | dd of=/dev/vdc conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
echo "vdc $(head -c 8192 /dev/vdc | sha256sum)"
dd if=/dev/zero of=/dev/vdd count=1 2>/dev/null && echo "vdd was written" || echo "vdd refuses"
echo "rng $(cat /sys/class/misc/hw_random/rng_current) $(head -c 1000 /dev/hwrng | wc -c)"
echo "rng differs $(head -c 32 /dev/hwrng | sha256sum | cut -c1-9) $(head -c 32 /dev/hwrng | sha256sum | cut -c1-9)"
stty -F /dev/hvc0 raw -echo; echo "over hvc0" >/dev/hvc0; sleep 1
"""


@pytest.mark.parametrize("rings", ["", ",packed=on", ",packed=on,event_idx=off,indirect_desc=off", ",iothread=t"])
def test_disks_entropy_and_console_of_virtio(guest: Guest, tmp_path: Path, rings: str) -> None:
    source = random.Random(7)
    names = ("read", "written", "snapshot", "readonly")
    contents = {name: source.randbytes(1 << 20) for name in names}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    files = {name: f"file={tmp_path / name},format=raw" for name in names}
    properties = {"snapshot": ",snapshot=on", "readonly": ",readonly=on"}
    more = [
        *("-device", f"virtio-rng-device{rings}", "-device", f"virtio-serial-device{rings}"),
        *("-chardev", f"file,id=c,path={tmp_path / 'hvc0'}", "-device", "virtconsole,chardev=c"),
    ]
    for name in names:
        more += ["-drive", f"{files[name]},if=none,id={name}{properties.get(name, '')}"]
        more += ["-device", f"virtio-blk-device,drive={name}{rings}"]
    if "iothread" in rings:
        more += ["-object", "iothread,id=t,poll-max-ns=32768", "-M", "virt,iothreads=2"]
    log = run(guest, 2, DEVICES, *more)
    for disk, readonly in (("vda", 0), ("vdb", 0), ("vdc", 0), ("vdd", 1)):
        assert f"disk {disk} 2048 {readonly}\n" in log
    assert f"vda {hashlib.sha256(contents['read']).hexdigest()}" in log
    seen = bytes(4096) + contents["snapshot"][4096:8192]
    assert f"vdc {hashlib.sha256(seen).hexdigest()}" in log
    assert "vdd refuses\n" in log
    assert f"packed {int('packed' in rings)}\n" in log
    assert re.search(r"rng virtio_rng\S* 1000\n", log)
    assert (differs := re.search(r"rng differs (\S+) (\S+)\n", log)) and differs[1] != differs[2]
    expected = contents | {"written": contents["read"]}
    assert {name: (tmp_path / name).read_bytes() == expected[name] for name in names} == dict.fromkeys(names, True)
    assert (tmp_path / "hvc0").read_bytes().strip() == b"over hvc0"


# Linux hears of ports and their names one after another, maybe while this runs already.
PORTS = """
cd /sys/class/virtio-ports
for n in 1 2 3 4 5 6; do
    until name=$(cat vport0p$n/name 2>/dev/null) && [ "$name" ]; do sleep 0.1; done
    echo "port vport0p$n $name"
done
for n in 1 2 3 4 5 6; do echo "by port $n" >/dev/vport0p$n; done
stty -F /dev/hvc0 raw -echo; echo "over hvc0" >/dev/hvc0; sleep 1
"""


def test_six_named_ports_and_a_console_on_one_device(guest: Guest, tmp_path: Path) -> None:
    more = ["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=c0"]
    more += ["-chardev", f"file,id=c0,path={tmp_path}/c0"]
    for n in range(1, 7):
        more += ["-chardev", f"file,id=c{n},path={tmp_path}/c{n}"]
        more += ["-device", f"virtserialport,chardev=c{n},name=org.example.{n}"]
    log = run(guest, 2, PORTS, *more).replace("\r", "")
    for n in range(1, 7):
        assert f"port vport0p{n} org.example.{n}\n" in log
        assert (tmp_path / f"c{n}").read_text() == f"by port {n}\n"
    assert (tmp_path / "c0").read_bytes().strip() == b"over hvc0"


BALLOON = """
total() { awk '/MemTotal/ {print $2}' /proc/meminfo; }
for n in $(seq 100); do [ $(total) -lt 750000 ] && break; sleep 0.2; done
echo "total $(total)"
head -c 50000000 /dev/zero >/tmp/file; wc -c </tmp/file; rm /tmp/file
"""


def test_a_balloon_takes_memory_from_the_guest(guest: Guest) -> None:
    log = run(guest, 2, BALLOON, "-device", "virtio-balloon-pci,size=256M,free-page-reporting=on")
    assert (found := re.search(r"total (\d+)", log.replace("\r", ""))) and int(found[1]) < 750_000
    assert "the host keeps the memory" not in log


DISK_IN_MEMORY = """
cd /tmp; head -c 262144 /dev/urandom >a; dd if=a of=/dev/vda bs=64k conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches; head -c 262144 /dev/vda | cmp - a && echo "the same"
cat /sys/block/vda/size; dd if=a of=/dev/vda seek=8191 bs=512 2>/dev/null || echo "full"
"""


def test_the_worked_example_of_a_backend_is_a_disk(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parent.parent / "docs/BACKENDS.md").read_text()
    (tmp_path / "memory_disk.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    log = run(guest, 2, DISK_IN_MEMORY, "-device", "py:memory_disk.MemoryDisk,size=4194304,packed=on")
    assert "the same\n8192\nfull\n" in log.replace("\r", "")


def test_a_shell_takes_a_paste_and_reboots_and_powers_off(guest: Guest) -> None:
    pasted = "".join(f"{n:06d} the quick brown fox jumps over the lazy dog\n" for n in range(200))
    with Console(*options(guest, 4, APPEND), terminal=True) as console:
        console.expect(PROMPT, TIMEOUT)
        console.send("stty -echo; echo re''ady; cat >/tmp/paste; stty echo; sha256sum /tmp/paste\r")
        console.expect("ready", TIMEOUT)
        console.send(pasted.replace("\n", "\r") + "\x04")
        console.expect(hashlib.sha256(pasted.encode()).hexdigest(), TIMEOUT)
        console.send("reboot -f\r")
        console.expect("Linux version", TIMEOUT)
        console.expect(PROMPT, TIMEOUT)
        # Ctrl-C is the guest's. The process that gets it says that it runs: between two commands of one line the shell
        # is in the foreground, and may start the second one nonetheless.
        console.send("sh -c 'echo as\"\"leep; exec sleep 1000'\r")
        console.expect("asleep", TIMEOUT)
        console.send("\x03")
        console.expect(PROMPT, TIMEOUT)
        processes = console.processes(harts=4)
        console.send("poweroff -f\r")
        assert console.wait(TIMEOUT) == 0
        assert gone(processes) == []
        assert console.terminal_is_restored()
        assert not TROUBLE.search(console.text())


def test_no_reboot_ends_linux_at_its_reboot(guest: Guest) -> None:
    append = run_script("reboot -f")
    with Console(*options(guest, 1, append, "-no-reboot")) as console:
        assert console.wait(TIMEOUT) == 0
        assert console.text().count("Linux version") == 1


def test_a_console_of_several_ports_has_the_size_of_its_terminal(guest: Guest, tmp_path: Path) -> None:
    """Columns come first in the message, as in the specification; Linux before 6.12.66 took them for rows."""
    port = ("-chardev", "stdio,id=c", "-device", "virtio-serial-device", "-device", "virtconsole,chardev=c")
    # The device tells it when the driver is ready, maybe not before this runs: no size yet is "0 0" or an error.
    script = (
        "for n in $(seq 300); do size=$(stty size </dev/hvc0); case $size in [1-9]*) break ;; esac; sleep 0.2; done"
    )
    words = options(guest, 1, run_script(script + "; echo $size"), "-serial", f"file:{tmp_path}/log", *port)
    with Console(*words, "-monitor", "none", terminal=True, size=(41, 101)) as console:
        assert console.wait(TIMEOUT) == 0
    assert "\n41 101\n" in (tmp_path / "log").read_text(errors="replace").replace("\r", "")
