"""A machine under the control of a program: what QMP's commands do to harts, clock and processes."""

import contextlib
import json
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from console import COMMAND, Console, gone, inodes, started
from qmp_client import Qmp, Refused, connect
from test_machine import ECHO, IDLE, POWER_OFF, Assemble, compiled, guest

__all__ = ["compiled", "guest"]
pytestmark = pytest.mark.conformance

# Hart 0 writes the clock, eight letters from a to p, every 10 ms; the others are busy.
TICKS = """
    csrr t0, mhartid
    bnez t0, spin
    csrr s2, time
    li s3, 100000
loop:
    csrr s4, time
    sub t1, s4, s2
    bltu t1, s3, loop
    mv s2, s4
    lla s5, line
    li s1, 28
digits:
    srl t1, s4, s1
    andi t1, t1, 15
    addi t1, t1, 0x61
    sb t1, 0(s5)
    addi s5, s5, 1
    addi s1, s1, -4
    bgez s1, digits
    lla a0, line
    call print
    j loop
spin:
    addi t3, t3, 1
    j spin
    .data
line: .asciz "--------\\n"
    .text
"""
HZ = 10_000_000
PAUSE = 3.0  # seconds; more than passes between the start of the clock and what it is compared with


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "qmp"


def monitor(place: Path) -> tuple[str, str]:
    return "-qmp", f"unix:{place},server=on,wait=off"


def clocks(console: Console) -> list[int]:
    """What the guest has written of its clock."""
    console.collect(0)
    lines = re.findall(r"^([a-p]{8})$", console.text(), re.MULTILINE)
    return [int("".join(f"{ord(letter) - ord('a'):x}" for letter in line), 16) for line in lines]


def wait_for_clock(console: Console, count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(found := clocks(console)) < count:
        assert time.monotonic() < deadline, "the guest does not run"
        time.sleep(0.01)
    return found


def used(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@pytest.mark.parametrize("engine", [[], ["--engine", "interp"]])
def test_stop_stops_every_hart_and_the_guests_clock(guest: Assemble, place: Path, engine: list[str]) -> None:
    began = time.monotonic()
    options = ["-kernel", guest(TICKS), "-device", "virtio-balloon-device", *monitor(place), *engine]
    with started(*options, harts=3) as console, Qmp(place) as qmp:
        wait_for_clock(console, 3)
        harts = [psutil.Process(cpu["thread-id"]) for cpu in qmp("query-cpus-fast")]
        assert len(harts) == 3 and used(harts) > 0
        qmp("stop")
        qmp.event("STOP")
        assert qmp("query-status") == {"status": "paused", "running": False}
        for _ in range(2):  # between two answers, the I/O process has passed on what the UART had
            qmp("query-balloon")
        stopped = time.monotonic()
        before, cost = clocks(console), used(harts)
        time.sleep(PAUSE)
        assert clocks(console) == before and used(harts) - cost < 0.1
        stopped = time.monotonic() - stopped
        qmp("stop")
        qmp("cont")
        qmp.event("RESUME")
        after = wait_for_clock(console, len(before) + 3)
        assert after[-1] / HZ < time.monotonic() - began - stopped
        assert after == sorted(after)
        qmp("quit")
        assert console.wait() == 0


def test_a_machine_that_starts_stopped_has_not_begun(guest: Assemble, place: Path) -> None:
    began = time.monotonic()
    with started("-kernel", guest(TICKS), *monitor(place), "-S") as console, Qmp(place) as qmp:
        assert qmp("query-status") == {"status": "prelaunch", "running": False}
        time.sleep(PAUSE)
        assert clocks(console) == []
        qmp("cont")
        assert wait_for_clock(console, 1)[-1] / HZ < time.monotonic() - began - PAUSE
        assert qmp("query-status") == {"status": "running", "running": True}


def test_stopping_over_and_over_loses_no_hart(guest: Assemble, place: Path) -> None:
    with started("-kernel", guest(TICKS), *monitor(place), harts=4) as console, Qmp(place) as qmp:
        for _ in range(300):
            qmp("stop")
            qmp("cont")
        wait_for_clock(console, len(clocks(console)) + 3)
        harts = [psutil.Process(cpu["thread-id"]) for cpu in qmp("query-cpus-fast")]
        before = [used([hart]) for hart in harts]
        deadline = time.monotonic() + 60
        while not all(used([hart]) > old for hart, old in zip(harts, before, strict=True)):
            assert time.monotonic() < deadline, "a hart does not run"
            time.sleep(0.1)


@pytest.mark.parametrize("paused", [False, True])
def test_quit_ends_the_machine_with_status_0(guest: Assemble, place: Path, paused: bool) -> None:
    with started("-kernel", guest(TICKS), *monitor(place)) as console, Qmp(place) as qmp:
        processes = console.processes(4)
        if paused:
            qmp("stop")
        assert qmp("quit") == {}
        assert qmp.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-qmp-quit"}
        assert console.wait() == 0
        assert not gone(processes) and not place.exists() and not console.errors


def test_a_reset_begins_anew_and_keeps_the_connection(guest: Assemble, place: Path) -> None:
    with started("-kernel", guest(IDLE), *monitor(place)) as console, Qmp(place) as qmp:
        for _ in range(2):
            console.expect("ready")
            qmp("system_reset")
            assert qmp.event("RESET")["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
        console.expect("ready\r?\n")
        qmp("stop")
        qmp("system_reset")
        assert qmp("query-status") == {"status": "prelaunch", "running": False}
        seen = len(console.text())
        time.sleep(PAUSE)
        console.collect()
        assert len(console.text()) == seen
        qmp("cont")
        console.expect("ready")


def test_a_reset_that_is_not_wanted_ends_the_machine(guest: Assemble, place: Path) -> None:
    with started("-kernel", guest(IDLE), *monitor(place), "-no-reboot") as console, Qmp(place) as qmp:
        console.expect("ready")
        qmp("system_reset")
        assert qmp.event("SHUTDOWN")["data"]["reason"] == "host-qmp-system-reset"
        assert console.wait() == 0


def test_the_guests_own_end_is_told(guest: Assemble, place: Path) -> None:
    with started("-kernel", guest(POWER_OFF), *monitor(place), "-S") as console, Qmp(place) as qmp:
        qmp("cont")
        assert qmp.event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-shutdown"}
        assert console.wait() == 0


def test_commands_are_refused_in_qemus_words(guest: Assemble, place: Path) -> None:
    with started("-kernel", guest(IDLE), *monitor(place)) as _, connect(place) as link:
        file = link.makefile("rb")
        for line, expected in (
            (None, "QMP"),
            ('{"execute": "query-status"}', "CommandNotFound: Expecting capabilities negotiation"),
            ('{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}', "GenericError: Capability 'oob' is"),
            ('{"execute": "qmp_capabilities"}', "return"),
            ('{"execute": "qmp_capabilities"}', "CommandNotFound: Capabilities negotiation is already complete"),
            ("{}", "GenericError: QMP input lacks member 'execute'"),
            ('{"execute": "query-foo", "id": 7}', "CommandNotFound: The command query-foo has not been found"),
            ('{"execute": "system_powerdown"}', "GenericError: the machine has no power button"),
            ('{"execute": "balloon", "arguments": {"value": 5}}', "DeviceNotActive: No balloon device"),
            ('{"execute": "set_link", "arguments": {"name": "x", "up": true}}', "DeviceNotFound: Device 'x' not found"),
            ('{"execute": "block_resize", "arguments": {"size": 5}}', "GenericError: Cannot find device=''"),
            ('{"execute": "qom-get", "arguments": {"path": "/x", "property": "y"}}', "DeviceNotFound: Device '/x'"),
            ('{"execute": "query-block"}', "return"),
            ('{"execute": "query-name"}', "return"),
        ):
            link.sendall((line or "").encode())
            answer = json.loads(file.readline())
            error = answer.get("error", {})
            assert expected in f"{error.get('class')}: {error.get('desc')}" or expected in answer, (line, answer)
            assert answer.get("id") == (7 if "query-foo" in (line or "") else None)


def test_what_the_machine_consists_of(guest: Assemble, place: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(5 << 20))
    devices = ["-drive", f"file={disk},format=raw,readonly=on,throttling.iops-total=9", "-object", "iothread,id=t0"]
    devices += ["-device", "virtio-balloon-device,id=b0,size=16M", "-device", "virtio-serial-device"]
    devices += ["-chardev", "pty,id=p0", "-device", "virtserialport,chardev=p0,id=port0", *monitor(place)]
    with started("-kernel", guest(IDLE), *devices, harts=2) as console, Qmp(place) as qmp:
        children = {process.pid for process in psutil.Process(console.process.pid).children()}
        (disk_found,) = qmp("query-block")
        inserted = disk_found["inserted"]
        assert disk_found["device"] == "virtio0" and inserted["ro"] and inserted["iops"] == 9
        assert inserted["image"]["virtual-size"] == 5 << 20 and inserted["file"] == str(disk)
        with pytest.raises(Refused, match="read-only"):
            qmp("block_resize", device="virtio0", size=6 << 20)
        assert [cpu["cpu-index"] for cpu in qmp("query-cpus-fast")] == [0, 1]
        assert {cpu["thread-id"] for cpu in qmp("query-cpus-fast")} < children
        (thread,) = qmp("query-iothreads")
        assert thread["id"] == "t0" and thread["thread-id"] in children
        ends = {end["label"]: end for end in qmp("query-chardev")}
        assert set(ends) == {"serial0", "p0", "compat_monitor0"} and not ends["p0"]["frontend-open"]
        assert Path(ends["p0"]["filename"].removeprefix("pty:")).exists()
        assert {"name": "stop"} in qmp("query-commands") and "hartbeat" in qmp("query-version")["package"]
        assert {"name": "b0", "type": "child<virtio-balloon-device>"} in qmp("qom-list", path="/machine/peripheral")
        assert qmp("query-balloon") == {"actual": 64 << 20}
        b0: dict[str, Any] = {"path": "/machine/peripheral/b0"}
        stats = qmp("qom-get", **b0, property="guest-stats")
        assert stats["last-update"] == 0 and set(stats["stats"].values()) == {(1 << 64) - 1}
        qmp("qom-set", **b0, property="guest-stats-polling-interval", value=3)
        assert qmp("qom-get", **b0, property="guest-stats-polling-interval") == 3
        for property_, value in (("guest-stats-polling-interval", -1), ("guest-stats", 1), ("x", 1)):
            with pytest.raises(Refused):
                qmp("qom-set", **b0, property=property_, value=value)


def test_what_was_set_outlives_a_reset(guest: Assemble, place: Path) -> None:
    """The device's registers, which no driver has touched, show it."""
    reader = 'only_first; li t0, 0x10001100; lw t1, 0(t0); beqz t1, 1f; say "asked\\n"; j 2f; 1: say "not\\n"; 2:'
    with started("-kernel", guest(reader), "-device", "virtio-balloon-device", *monitor(place)) as console:
        console.expect("not|asked")
        assert "asked" not in console.text()
        with Qmp(place) as qmp:
            qmp("stop")
            qmp("balloon", value=48 << 20)
            qmp("system_reset")
            qmp("query-balloon")  # the new I/O process has looked at its orders
            qmp("cont")
            console.expect("asked")


def wait_until_harts_run(qmp: Qmp) -> None:
    """They have been forked, and have closed what is not theirs by the time that they can be stopped."""
    qmp("stop")
    qmp("cont")


@pytest.mark.parametrize("more", [[], ["-sandbox", "off"]])
def test_no_other_process_has_a_monitors_sockets(guest: Assemble, place: Path, more: list[str]) -> None:
    machine = ["-kernel", guest(IDLE), *monitor(place), "-machine", "iothreads=1", *more]
    with started(*machine, harts=2) as console, Qmp(place) as qmp:
        console.expect("ready")
        for _ in range(2):  # the second time with a client that was there before the fork
            qmp("query-status")  # by now all processes have been forked
            wait_until_harts_run(qmp)
            supervisor = console.process.pid
            ours = {inode for inode in inodes(supervisor) if inode.startswith("socket:")}
            assert len(ours) > 3
            for process in psutil.Process(supervisor).children():
                end = time.monotonic() + 30  # it may be on its way to close them
                while inodes(process.pid) & ours:
                    assert time.monotonic() < end, process
                    time.sleep(0.01)
            qmp("system_reset")
            console.expect("ready")
            qmp.event("RESET")


def test_a_client_that_floods_and_does_not_read_hangs_nobody(guest: Assemble, place: Path) -> None:
    with started("-kernel", guest(ECHO), *monitor(place)) as console:
        console.expect("ready")
        with connect(place) as link:
            link.sendall(b'{"execute": "qmp_capabilities"}')
            link.settimeout(1)
            with pytest.raises(TimeoutError):
                while True:
                    link.sendall(b'{"execute": "query-commands"}' * 1000)
            memory = psutil.Process(console.process.pid).memory_info().rss
            console.send("still here")
            console.expect("still here")
            assert memory < 400 << 20
        with connect(place) as link:
            link.settimeout(1)
            with contextlib.suppress(OSError):
                for _ in range(200):
                    link.sendall(b'[[[["' * 5000)
            console.send("and here")
            console.expect("and here")
        with Qmp(place) as qmp:
            qmp("quit")
        assert console.wait() == 0


def test_two_monitors_by_other_options(guest: Assemble, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ends = ["-chardev", f"socket,id=m,path={place},server=on,wait=off", "-mon", "chardev=m,mode=control"]
    ends += ["-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off", "-monitor", "none"]
    with started("-kernel", guest(IDLE), *ends) as console, Qmp(place) as qmp:
        with socket.create_connection(("127.0.0.1", port), 60) as link:
            link.sendall(b'{"execute": "qmp_capabilities"}{"execute": "stop", "id": 1}')
            link.shutdown(socket.SHUT_WR)  # it is served to its end
            answers = [json.loads(line) for line in link.makefile("rb")]
        assert [answer.get("event") or answer.get("id") for answer in answers] == [None, None, "STOP", 1]
        qmp.event("STOP")
        qmp("quit")
        assert console.wait() == 0


def test_a_monitor_on_standard_input_and_output(guest: Assemble) -> None:
    words = [*COMMAND, "-m", "64M", "-bios", "none", "-kernel", guest(IDLE), "-serial", "none", "-qmp", "stdio"]
    lines = b'{"execute": "qmp_capabilities"}{"execute": "query-status", "id": 1}{"execute": "quit", "id": 2}'
    done = subprocess.run(words, input=lines, capture_output=True, timeout=240)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not done.stderr
    assert [answer.get("id") for answer in answers[1:4]] == [None, 1, 2] and answers[4]["event"] == "SHUTDOWN"
