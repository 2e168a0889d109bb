"""`--run COMMAND`: the default guest runs one command and ends, and the host's command ends as it did.

The command and its exit status travel in a folder of their own that the guest mounts; standard output comes by a
virtio console, standard error by the UART, where the kernel's last words would appear too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from smp.guest import GuestError, boot_options
from smp.option_text import escape

TAG = "hartbeat-run"  # scripts/guest/init mounts it
LOST = 1  # the exit status when there is none
# No messages but of a kernel that gives up, which it then does at once.
APPEND = "console=ttyS0 quiet loglevel=1 panic=-1"
HELP = """\
--run COMMAND
        of scripts/boot alone: run the command in the default guest, in the folder of --share
        if there is one, and end with its exit status

The emulator's options:
"""
NOT_WITH = ("-kernel", "-bios", "-initrd")


def split_run(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command of --run, None without one, and the other words."""
    command: str | None = None
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, text = word.lstrip("-").partition("=")
        if not word.startswith("-") or name != "run":
            others.append(word)
            continue
        value = text if equals else next(rest, None)
        if value is None:
            raise GuestError("--run: needs a value: the command, in quotes")
        if command is not None:
            raise GuestError(f"--run {value}: is given twice; join the commands by && or ;")
        command = value
    return command, others


def run_options(folder: str, words: Sequence[str]) -> list[str]:
    """What the emulator needs beside the user's own options; ours come first, so that the console is the first one."""
    given = {"-" + word.lstrip("-").split("=")[0] for word in words if word.startswith("-")}
    for name in NOT_WITH:
        if name in given:
            raise GuestError(f"--run: runs in the default guest; leave {name} out")
    own = ["-no-reboot", "-virtfs", f"local,path={escape(folder)},mount_tag={TAG},security_model=none"]
    own += ["-device", "virtio-serial-device", "-chardev", f"fd,fd=1,id={TAG}", "-device", f"virtconsole,chardev={TAG}"]
    own += [] if "-serial" in given else ["-serial", "fd:2"]
    own += [] if "-append" in given else ["-append", APPEND]
    return own


def run(
    command: str,
    words: Sequence[str],
    start: Callable[[list[str]], int],
    complete: Callable[[list[str]], list[str]] = boot_options,
) -> int:
    """Run the command; its exit status, or the emulator's own when that failed."""
    with tempfile.TemporaryDirectory(prefix="hartbeat-run-", ignore_cleanup_errors=True) as folder:
        Path(folder, "command").write_bytes(os.fsencode(command) + b"\n")
        status = start(complete([*run_options(folder, words), *words]))
        if status:
            return status
        found = read_status(Path(folder, "status"))
    if found is None and reader_is_gone(1):
        return 128 + signal.SIGPIPE
    if found is None:
        print("hartbeat: --run: the guest ended before the command did", file=sys.stderr)
        return LOST
    return found


def reader_is_gone(fd: int) -> bool:
    """Whether the descriptor is a pipe that nobody reads: then the machine has ended for it."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def read_status(path: Path) -> int | None:
    """What the guest has written; it may have put anything there."""
    with contextlib.suppress(OSError, ValueError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 16)) & 0xFF
        finally:
            os.close(fd)
    return None
