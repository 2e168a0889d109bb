"""`python -m smp` is the `hartbeat` command."""

import gc
import signal
import sys

from mem.cachedir import keep_bytecode


def command() -> int:
    """Run the command; Ctrl-C while Python still loads it ends it quietly."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    keep_bytecode()
    gc.disable()  # until the processes are forked: what a start makes stays
    from smp.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(command())
