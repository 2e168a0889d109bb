"""The commands of QMP that a machine obeys, with QEMU's names, arguments and answers.

A command is a function of the `Control` and its arguments. One that takes time is a generator: it yields an `Ask`, and
gets what the device's process answers, or None to be gone on with in a moment. QmpError is the client's answer.
"""

import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from mem.clock import mtime
from mem.machine import RESET, end_machine
from mem.pause import has_paused, pause_machine, resume_machine
from smp.config import NET_DEVICE, DeviceConfig, DriveConfig
from smp.links import Ask
from smp.qmp import NEGOTIATION, NO_DEVICE, NOT_ACTIVE, QMP_VERSION, QmpError, check_type
from virtio.chardev import Chardev
from virtio.process import hurry_end

if TYPE_CHECKING:
    from smp.control import Control

BALLOON = "virtio-balloon-device"
# What a balloon's driver tells by its tag (virtio 1.3, 5.5.6.3; those from 10 on are Linux's), in QEMU's words.
STATISTICS = (
    *("swap-in", "swap-out", "major-faults", "minor-faults", "free-memory", "total-memory", "available-memory"),
    *("disk-caches", "htlb-pgalloc", "htlb-pgfail", "oom-kills", "alloc-stalls", "async-scans", "direct-scans"),
    *("async-reclaims", "direct-reclaims"),
)
UNKNOWN = (1 << 64) - 1
POLLING, GUEST_STATS = "guest-stats-polling-interval", "guest-stats"
FOLDERS = ("/machine/peripheral", "/machine/peripheral-anon")  # of devices with a name, and without
Steps = Generator[Ask | None, Any, Any]


class Command(NamedTuple):
    function: Callable[..., Any]
    needed: dict[str, type]
    optional: dict[str, type]


COMMANDS: dict[str, Command] = {}


def command(
    name: str, needed: dict[str, type] | None = None, optional: dict[str, type] | None = None
) -> Callable[[Any], Any]:
    """Put a function into the table; its parameters have `_` for the names' `-`."""

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        COMMANDS[name] = Command(function, needed or {}, optional or {})
        return function

    return put


# The machine ---------------------------------------------------------------------------------------------------


@command("query-version")
def query_version(control: "Control") -> Any:
    return QMP_VERSION


@command("query-commands")
def query_commands(control: "Control") -> Any:
    return [{"name": name} for name in (NEGOTIATION, *COMMANDS)]


@command("query-name")
def query_name(control: "Control") -> Any:
    return {}


@command("query-status")
def query_status(control: "Control") -> Any:
    return {"status": control.status, "running": not control.is_paused}


@command("stop")
def stop(control: "Control") -> Steps:
    if control.is_paused:
        return {}
    control.is_paused = True  # also if the machine is reset meanwhile
    pause_machine()
    while not has_paused():
        yield None
    control.paused_at, control.status = mtime(), "paused"
    control.event("STOP")
    return {}


@command("cont")
def cont(control: "Control") -> Any:
    if control.is_paused:
        control.is_paused, control.status = False, "running"
        resume_machine(control.paused_at)
        control.event("RESUME")
    return {}


@command("system_reset")
def system_reset(control: "Control") -> Any:
    control.cause = "host-qmp-system-reset"
    end_machine(RESET, 0)
    return {}


@command("system_powerdown")
def system_powerdown(control: "Control") -> Any:
    raise QmpError("the machine has no power button: have the guest power down, or use quit")


@command("quit")
def quit_machine(control: "Control") -> Any:
    control.cause = "host-qmp-quit"
    hurry_end()
    return {}


@command("query-cpus-fast")
def query_cpus(control: "Control") -> Any:
    return [
        {
            "cpu-index": number,
            "thread-id": process.pid,
            "qom-path": f"/machine/soc0/harts[{number}]",
            "props": {"core-id": number},
            "target": "riscv64",
        }
        for number, process in enumerate(control.harts)
    ]


@command("query-iothreads")
def query_iothreads(control: "Control") -> Any:
    named = zip(control.config.iothreads, control.io.polling[1:], control.io_processes[1:], strict=False)
    return [
        {
            "id": given.id,
            "thread-id": process.pid,
            "poll-max-ns": polling.most,
            "poll-grow": polling.grow,
            "poll-shrink": polling.shrink,
            "aio-max-batch": 0,
        }
        for given, polling, process in named
    ]


@command("query-chardev")
def query_chardev(control: "Control") -> Any:
    ends = [host for host in control.io.all_hosts() if isinstance(host, Chardev) and host.label]
    ends += [monitor.end for monitor in control.monitors]
    return [
        {"label": end.label, "filename": end.filename, "frontend-open": control.ports.get(end.label, True)}
        for end in ends
    ]


# Devices -------------------------------------------------------------------------------------------------------


def balloon_slot(control: "Control") -> int:
    """The first balloon's."""
    for slot, given in control.io.given.items():
        if given.driver == BALLOON:
            return slot
    raise QmpError("No balloon device has been activated", NOT_ACTIVE)


@command("balloon", {"value": int})
def balloon(control: "Control", value: int) -> Steps:
    slot = balloon_slot(control)
    if value <= 0:
        raise QmpError("Parameter 'value' expects a size")
    yield Ask(slot, "demand", max(control.config.ram - value, 0))
    return {}


@command("query-balloon")
def query_balloon(control: "Control") -> Steps:
    return {"actual": control.left(whole_number((yield Ask(balloon_slot(control), "size"))))}


@command("set_link", {"name": str, "up": bool})
def set_link(control: "Control", name: str, up: bool) -> Steps:
    for slot, given in control.io.given.items():
        if given.driver == NET_DEVICE and name and name in (given.get("netdev"), given.get("id")):
            if "set_link" not in control.io.devices[slot].orders:
                raise QmpError(f"netdev {given.get('netdev')}: another process has its frames; stop that one")
            yield Ask(slot, "set_link", up)
            return {}
    raise QmpError(f"Device '{name}' not found", NO_DEVICE)


@command("block_resize", {"size": int}, {"device": str, "node-name": str})
def block_resize(control: "Control", size: int, device: str = "", node_name: str = "") -> Steps:
    name = device or node_name
    for slot, drive in disks(control):
        if drive.id != name:
            continue
        if size < 0:
            raise QmpError("Parameter 'size' expects a >0 size")
        if "resize" not in control.io.devices[slot].orders:
            raise QmpError(f"drive {name}: format {drive.format} is served by qemu-storage-daemon, and keeps its size")
        yield Ask(slot, "resize", size)
        return {}
    raise QmpError(f"Cannot find device='{device}' nor node-name='{node_name}'")


def disks(control: "Control") -> list[tuple[int, DriveConfig]]:
    """Each drive with its slot."""
    slots = {given.get("drive"): slot for slot, given in control.io.given.items() if given.get("drive")}
    return [(slots[drive.id], drive) for drive, _ in control.config.block_devices()]


@command("query-block")
def query_block(control: "Control") -> Steps:
    answer = []
    for slot, drive in disks(control):
        size = whole_number((yield Ask(slot, "size")))
        answer.append(
            {
                "device": drive.id,
                "qdev": f"{qom_paths(control)[slot]}/virtio-backend",
                "type": "unknown",
                "removable": False,
                "locked": False,
                "io-status": "ok",
                "inserted": inserted(drive, size, drive.snapshot or control.config.snapshot),
            }
        )
    return answer


def inserted(drive: DriveConfig, size: int, snapshot: bool) -> dict[str, Any]:
    """QEMU's BlockDeviceInfo: the image of a drive."""
    limits = dict(drive.throttle)
    file = str(drive.file)
    image: dict[str, Any] = {"filename": file, "format": drive.format, "virtual-size": size}
    try:
        image["actual-size"] = os.stat(drive.file).st_blocks * 512
    except OSError:
        image["actual-size"] = 0  # it is gone from there, and open all the same
    made: dict[str, Any] = {"file": file, "drv": drive.format, "ro": drive.readonly, "image": image}
    made |= {"node-name": drive.id, "encrypted": False, "backing_file_depth": int(snapshot), "write_threshold": 0}
    made |= {"detect_zeroes": "off", "cache": {"writeback": True, "direct": False, "no-flush": snapshot}}
    for unit in ("iops", "bps"):
        for way, ending in (("total", ""), ("read", "_rd"), ("write", "_wr")):
            made[unit + ending] = limits.get(f"{unit}-{way}", 0)
    return made


# Properties of devices -----------------------------------------------------------------------------------------


def qom_paths(control: "Control") -> dict[int, str]:
    """Where each slot's device is, in QEMU's tree of objects."""
    paths, anonymous = {}, 0
    for slot, given in control.io.given.items():
        if name := given.get("id"):
            paths[slot] = f"/machine/peripheral/{name}"
        else:
            paths[slot] = f"/machine/peripheral-anon/device[{anonymous}]"
            anonymous += 1
    return paths


def find_object(control: "Control", path: str) -> tuple[int, DeviceConfig]:
    for slot, known in qom_paths(control).items():
        if known == path:
            return slot, control.io.given[slot]
    raise QmpError(f"Device '{path}' not found", NO_DEVICE)


@command("qom-list", {"path": str})
def qom_list(control: "Control", path: str) -> Any:
    if path in FOLDERS:
        return [
            {"name": known.rpartition("/")[2], "type": f"child<{control.io.given[slot].driver}>"}
            for slot, known in qom_paths(control).items()
            if known.rpartition("/")[0] == path
        ]
    _, given = find_object(control, path)
    names = {POLLING: "int", GUEST_STATS: "guest statistics"} if given.driver == BALLOON else {}
    return [{"name": name, "type": kind} for name, kind in {"type": "string", **names}.items()]


@command("qom-get", {"path": str, "property": str})
def qom_get(control: "Control", path: str, property: str) -> Steps:
    slot, given = find_object(control, path)
    if property == "type":
        return given.driver
    if given.driver == BALLOON and property == POLLING:
        return control.links.lasting.get((slot, "poll_statistics"), 0)
    if given.driver == BALLOON and property == GUEST_STATS:
        return statistics((yield Ask(slot, "last_statistics")))
    raise QmpError(f"Property '{given.driver}.{property}' not found")


@command("qom-set", {"path": str, "property": str, "value": object})
def qom_set(control: "Control", path: str, property: str, value: object) -> Steps:
    slot, given = find_object(control, path)
    if property == "type" or (given.driver == BALLOON and property == GUEST_STATS):
        raise QmpError(f"Property '{given.driver}.{property}' is not writable")
    if given.driver != BALLOON or property != POLLING:
        raise QmpError(f"Property '{given.driver}.{property}' not found")
    check_type(property, value, int)
    assert isinstance(value, int)
    if value < 0:
        raise QmpError("timer value must be greater than zero")
    if value >= 1 << 32:
        raise QmpError("timer value is too big")
    yield Ask(slot, "poll_statistics", value)
    return {}


def statistics(answer: Any) -> dict[str, Any]:
    """What a balloon's driver has told; what it has not is all ones."""
    tags = answer.get("tags") if isinstance(answer, dict) else None
    if not isinstance(tags, dict):
        raise QmpError("the I/O process answers nonsense")
    stats = {f"stat-{name}": whole_number(tags.get(str(tag), UNKNOWN)) for tag, name in enumerate(STATISTICS)}
    return {"stats": stats, "last-update": whole_number(answer.get("time"))}


def whole_number(value: Any) -> int:
    """A number of an I/O process's."""
    if type(value) is not int or not 0 <= value <= UNKNOWN:
        raise QmpError("the I/O process answers nonsense")
    return value
