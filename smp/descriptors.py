"""Which descriptors the I/O processes keep: those that devices were opened with, and those that options name."""

import re

from smp.config import MachineConfig
from virtio.sandbox import open_descriptors

NAMING = ("fd", "fds", "addr.str", "local.str", "remote.str")  # properties that are numbers of descriptors


class Opened:
    """Tells what has been opened since it was last asked."""

    def __init__(self) -> None:
        self.known = open_descriptors()

    def lately(self) -> frozenset[int]:
        now = open_descriptors()
        new, self.known = frozenset(now - self.known), now
        return new


def inherited(config: MachineConfig) -> frozenset[int]:
    """Descriptors of the command's own that an option hands over."""
    texts = [end.arg for end in (*config.serials, *config.chardevs) if end.kind == "fd"]
    properties = [netdev.properties for netdev in config.networks()[0]] + [dev.properties for dev in config.devices]
    texts += [value for given in properties for name, value in given if name in NAMING]
    return frozenset(int(digits) for text in texts for digits in re.findall(r"\d+", text))
