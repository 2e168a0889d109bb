"""What a machine costs besides work: to start and end it, while its harts idle, and memory of each hart alone."""

import re
import time
from pathlib import Path

import psutil

from benchlib.machine import (
    MARK,
    Guest,
    Kind,
    RunError,
    explained,
    lines,
    machine_command,
    started,
    wait_for_end,
)

SETTLE_SECONDS, IDLE_SECONDS = 2, 5
START, IDLE, MEMORY = "start and end, s", "idle, % of a core", "private memory of a hart, MiB (most)"


def start(kind: Kind, elf: Path, harts: int) -> float:
    """From the command to the end of a guest that does nothing."""
    began = time.monotonic()
    options = ("-smp", str(harts), "-m", "1G", "-bios", "none", "-kernel", str(elf))
    with started(machine_command(kind, *options)) as process:
        seen: list[str] = []
        with explained(kind, seen, "start"):
            seen += lines(process)
        wait_for_end(kind, process)
    return time.monotonic() - began


def idle(kind: Kind, guest: Guest, harts: int, memory: bool) -> dict[str, float]:
    """Percent of a core while nobody asks anything of the machine, and with `memory` the most of a hart's own."""
    with started(machine_command(kind, *guest.options(harts, "idle"))) as process:
        seen: list[str] = []
        with explained(kind, seen, "boot"):
            for line in lines(process):
                seen.append(line)
                if line == MARK:
                    break
            else:
                raise RunError(f"{kind.name}: ended before /init ran")
        supervisor = psutil.Process(process.pid)
        children = sorted(supervisor.children(), key=lambda child: child.pid)
        everyone = [supervisor, *children]
        time.sleep(SETTLE_SECONDS)
        before = cpu_seconds(everyone)
        time.sleep(IDLE_SECONDS)
        found = {IDLE: 100 * (cpu_seconds(everyone) - before) / IDLE_SECONDS}
        if memory:
            # The I/O process is started before the harts, the optimizer after them.
            found[MEMORY] = max(private_bytes(hart.pid) for hart in children[1 : 1 + harts]) / (1 << 20)
    return found


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


def private_bytes(pid: int) -> int:
    """Memory of a process alone: guest RAM that only one hart has touched so far is shared all the same."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = "memfd:hartbeat" not in line
        elif counts and (found := re.match(r"Private_\w+: +(\d+) kB", line)):
            total += int(found[1]) << 10
    return total
