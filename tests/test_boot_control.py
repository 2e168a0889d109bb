"""Linux under the control of a program: stop and cont, memory by the balloon, the cable, a disk's size, reset, quit."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from console import Console
from qmp_client import Qmp
from test_boot import PROMPT, TIMEOUT, TROUBLE, options

from smp.guest import APPEND, default_guest

pytestmark = pytest.mark.boot

MIB = 1 << 20
RAM = 1024 * MIB  # as in test_boot.py


def ask(console: Console, command: str) -> str:
    """What a command prints in the guest."""
    console.send(f"echo be''gin; {command}; echo do''ne\n")
    match = console.expect(r"(?s)begin\r?\n(.*?)done\r?\n", TIMEOUT)
    return match[1].decode().replace("\r", "")


def wait(until: Callable[[], object], seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.1)


def held(pid: int) -> int:
    """Bytes of guest RAM that the host has given."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        place = f"/proc/{pid}/fd/{fd}"
        if "hartbeat-ram" in os.readlink(place):
            return os.stat(place).st_blocks * 512
    raise AssertionError("no memfd of guest RAM")


def test_linux_is_controlled_by_a_program(tmp_path: Path) -> None:
    disk, place = tmp_path / "disk", tmp_path / "qmp"
    disk.write_bytes(bytes(8 * MIB))
    more = [
        "-drive",
        f"file={disk},format=raw",
        "-nic",
        "hubport,hubid=0,id=n0",
        "-qmp",
        f"unix:{place},server=on,wait=off",
    ]
    more += ["-device", "virtio-balloon-device,id=b0", "-object", "iothread,id=t0"]
    with Console(*options(default_guest(), 2, APPEND, *more)) as console, Qmp(place) as qmp:
        console.expect(PROMPT, TIMEOUT)
        check_time(console, qmp)
        check_balloon(console, qmp)
        check_cable(console, qmp)
        qmp("block_resize", device="virtio0", size=24 * MIB)
        wait(lambda: ask(console, "cat /sys/block/vda/size").split() == ["49152"])
        assert disk.stat().st_size == 24 * MIB
        assert not TROUBLE.search(ask(console, "dmesg"))
        qmp("set_link", name="n0", up=False)
        qmp("block_resize", device="virtio0", size=16 * MIB)
        qmp("system_reset")
        # The last command's prompt may have come already: what is typed at it goes down with that Linux.
        console.expect("Linux version", TIMEOUT)
        console.expect(PROMPT, TIMEOUT)
        assert ask(console, "cat /sys/block/vda/size").split() == ["32768"]
        assert ask(console, "ip link set eth0 up; cat /sys/class/net/eth0/carrier").split() == ["0"]
        qmp("quit")
        assert console.wait() == 0


def check_time(console: Console, qmp: Qmp) -> None:
    """Thirty seconds in which nothing runs are none to the guest: a watchdog would have complained after 20."""
    before = float(ask(console, "cat /proc/uptime").split()[0])
    qmp("stop")
    time.sleep(30)
    qmp("cont")
    after = float(ask(console, "cat /proc/uptime").split()[0])
    assert before < after < before + 20


def check_balloon(console: Console, qmp: Qmp) -> None:
    """Memory that was used goes back to the host, and comes again."""
    ask(console, "modprobe virtio_balloon; mkdir -p /big; mount -t tmpfs -o size=700M none /big")
    ask(console, "dd if=/dev/zero of=/big/file bs=1M count=560; rm /big/file")
    full = held(console.process.pid)
    assert full > 550 * MIB
    qmp("balloon", value=RAM // 2)
    wait(lambda: qmp("query-balloon") == {"actual": RAM // 2})
    assert qmp.event("BALLOON_CHANGE")["data"]["actual"] < RAM
    empty = held(console.process.pid)
    print(f"guest RAM held by the host: {full // MIB} MiB, with the balloon {empty // MIB} MiB")
    assert empty < RAM // 2 and full - empty > 150 * MIB
    qmp("qom-set", path="/machine/peripheral/b0", property="guest-stats-polling-interval", value=1)
    path = {"path": "/machine/peripheral/b0", "property": "guest-stats"}
    # What the driver said when it was loaded is known from the beginning.
    wait(lambda: 0 < qmp("qom-get", **path)["stats"]["stat-total-memory"] < RAM // 2)
    qmp("balloon", value=RAM)
    wait(lambda: qmp("query-balloon") == {"actual": RAM})


def check_cable(console: Console, qmp: Qmp) -> None:
    ask(console, "ip link set eth0 up")
    for name, up in (("n0", False), ("n0", True)):
        qmp("set_link", name=name, up=up)
        wait(lambda up=up: ask(console, "cat /sys/class/net/eth0/carrier").split() == [str(int(up))])
