"""The `hartbeat` command: options in, exit status out. A user's mistake is one line on stderr and status 2."""

import os
import signal
import sys

from smp import options
from smp.config import MachineConfig
from smp.config_check import check
from smp.cpu import ConfigError

USER_ERROR = 2


def main(argv: list[str] | None = None) -> int:
    """Run the machine that `argv` (default: the process's own arguments) asks for; returns the exit status."""
    try:
        return start(options.parse(sys.argv[1:] if argv is None else argv))
    except options.Help as text:
        return show(str(text))
    except ConfigError as error:
        print(f"hartbeat: {one_line(str(error))}", file=sys.stderr)
        return USER_ERROR


def show(text: str) -> int:
    """Print it; if nobody reads it to its end, the exit status is that of a command which SIGPIPE has ended."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes when Python ends
        return 128 + signal.SIGPIPE
    return 0


def one_line(text: str) -> str:
    """Control characters of a name are shown, not sent to the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def start(config: MachineConfig) -> int:
    """Check everything that can be wrong with the machine, then run it (or write its device tree)."""
    # Only now: -h and -version need none of it.
    from mem.image import ImageError

    check(config)
    try:
        if config.dumpdtb is not None:
            return dump_device_tree(config)
        from smp.machine import run_machine

        return run_machine(config)
    except ImageError as error:
        raise ConfigError(str(error)) from error


def dump_device_tree(config: MachineConfig) -> int:
    """Write the tree that the guest would get."""
    from smp.devicetree import plan_boot

    assert config.dumpdtb is not None
    boot = plan_boot(config)
    blob = next(segment.data for segment in boot.segments if segment.address == boot.dtb)
    try:
        config.dumpdtb.write_bytes(blob)
    except OSError as error:
        raise ConfigError(f"-machine dumpdtb {config.dumpdtb}: {error.strerror}; choose another place") from error
    return 0
