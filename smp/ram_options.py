"""-object memory-backend-*, -numa and -machine memory-backend=: QEMU's words for what guest RAM is made of.

RAM is one shared memfd whatever they say; a command line that asks for that, as those for virtiofs do, gets it.
"""

import re
from typing import Any

from smp.config import RamBackendConfig
from smp.cpu import ConfigError
from smp.option_text import one_of, pairs, size, split_commas, switch

BACKENDS = ("memory-backend-memfd", "memory-backend-ram")


def is_backend(text: str) -> bool:
    return split_commas(text)[0].removeprefix("qom-type=").startswith("memory-backend-")


def read_backend(text: str) -> dict[str, Any]:
    given = pairs("-object", text, "qom-type", ("qom-type", "id", "size", "share"))
    one_of("-object", given["qom-type"], BACKENDS, "; RAM is a memfd, use memory-backend-memfd")
    if not given.get("id") or not given.get("size"):
        raise ConfigError(f"-object {text}: needs id=NAME and size=SIZE")
    switch("-object", "share", given.get("share", "on"))
    return {"ram_backends": (RamBackendConfig(given["id"], size("-object size", given["size"]), text),)}


def read_numa(text: str) -> dict[str, Any]:
    """One node, which has all there is; that its `cpus` are all harts is for who knows how many there are."""
    given = pairs("-numa", text, "type", ("type", "memdev", "nodeid", "cpus"))
    one_of("-numa", given.get("type", ""), ("node",), "; all harts and all RAM are one node, use -numa node,memdev=ID")
    one_of("-numa nodeid=", given.get("nodeid", "0"), ("0",), "; there is one node, leave nodeid out")
    if "cpus" in given and not re.fullmatch("[0-9]{1,4}(-[0-9]{1,4})?", given["cpus"]):
        raise ConfigError(f"-numa {text}: cpus={given['cpus']} are no harts; write them like 0-3")
    return {"ram_users": (("-numa node,memdev", given["memdev"]),) if "memdev" in given else (), "nodes": (text,)}
