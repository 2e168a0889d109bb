"""Options that command lines for QEMU have, and that say little about this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smp.config import SerialConfig
from smp.cpu import ConfigError
from smp.option_text import number, one_of, pairs, path, size

# Where a -bios without a folder is looked for after the current one; the last is Debian's opensbi.
FIRMWARE = ("/usr/local/share/qemu", "/usr/share/qemu", "/usr/lib/riscv64-linux-gnu/opensbi/generic")
OPENSBI = "opensbi-riscv64-generic-"  # QEMU's beginning of a name that is fw_*.bin in the last
ACCELERATORS = ("tcg", "kvm", "hvf")


def find_firmware(text: str) -> Path:
    """The file that a -bios names, or the name itself if there is none."""
    given = path("-bios", text)
    if os.path.exists(given) or "/" in text:
        return given
    for folder in FIRMWARE:
        for name in (text, text.removeprefix(OPENSBI)):
            if os.path.isfile(found := Path(folder, name)):
                return found
    return given


def read_accel(text: str) -> dict[str, Any]:
    """Of several the first that is available is taken, which is tcg: for others' sake no machine is refused."""
    given = pairs("-accel", text, "accel", ("accel", "thread", "tb-size"))
    for name in given.get("accel", "tcg").split(":"):
        one_of("-accel", name, ACCELERATORS)
    one_of("-accel thread=", given.get("thread", "multi"), ("multi",), "; every hart is a process, use multi")
    return {"tb_size": size("-accel tb-size", given["tb-size"])} if "tb-size" in given else {}


def read_echr(text: str) -> dict[str, Any]:
    code = int(text[:6], 16) if text[:2] == "0x" and text[2:6].isalnum() else number("-echr", text)
    if not 0 < code < 128:
        raise ConfigError(f"-echr {text}: is not a character's code; give 1 to 127 (1 is Ctrl-A)")
    return {"escape": code}


def read_mon(text: str) -> dict[str, Any]:
    given = pairs("-mon", text, "chardev", ("chardev", "mode", "id"))
    mode = one_of("-mon mode=", given.get("mode", "readline"), ("readline", "control"))
    if not given.get("chardev"):
        raise ConfigError(f"-mon {text}: needs chardev=ID")
    if mode == "control":
        return {"qmps": (SerialConfig("chardev", given["chardev"]),)}
    return {"monitors": (given["chardev"],)}


def absent(option: str, what: str) -> Callable[[str], dict[str, Any]]:
    """Of something that the machine has not, so that 'none' is all there is."""

    def read(text: str) -> dict[str, Any]:
        one_of(option, text, ("none",), f"; there is no {what}, use {option} none")
        return {}

    return read
