"""Options that command lines for QEMU have, and that say little about this machine."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mem.cachedir import cache_directory
from smp.config import SerialConfig
from smp.cpu import ConfigError
from smp.option_text import Help, number, one_of, pairs, path, size, split_commas

# Where a -bios without a folder is looked for after the current one; the last is Debian's opensbi.
FIRMWARE = ("/usr/local/share/qemu", "/usr/share/qemu", "/usr/lib/riscv64-linux-gnu/opensbi/generic")
OPENSBI = "opensbi-riscv64-generic-"  # QEMU's beginning of a name that is fw_*.bin in the last
ACCELERATORS = ("tcg", "kvm", "hvf")

# Options of QEMU's that are not there, and why, or what to use instead.
DEBUGGER = "there is no debugger interface; leave it out, -d help lists what can be logged"
NO_MONITOR = "not of this machine; leave it out"
NO_FLASH = "there is no flash memory, and so no UEFI; give -bios FILE or -kernel FILE"
ONLY_VIRTIO = "disks are virtio's; use -drive file=FILE"
REFUSED = {
    **dict.fromkeys(("gdb", "s", "semihosting", "semihosting-config"), DEBUGGER),
    **dict.fromkeys(("qmp-pretty", "no-shutdown", "pidfile"), NO_MONITOR),
    **dict.fromkeys(("incoming", "loadvm", "icount", "replay"), "there are no snapshots; leave it out"),
    **dict.fromkeys(("hda", "hdb", "cdrom", "sd", "fda", "mtdblock"), ONLY_VIRTIO),
    "boot": "give -bios FILE or -kernel FILE",
    "pflash": NO_FLASH,
    **dict.fromkeys(("vnc", "spice", "sdl", "full-screen"), "there is no display; use -nographic"),
    **dict.fromkeys(("usb", "usbdevice"), "there is no USB; leave it out"),
    **dict.fromkeys(("audio", "audiodev"), "there is no sound; leave it out"),
    "L": "give -bios and -kernel with their folders",
    "blockdev": "use -drive file=FILE,format=FORMAT",
    "daemonize": "start it in the background: hartbeat ... &",
    "enable-kvm": "harts are translated, not virtualized; leave it out",
    "mem-path": "RAM is a memfd; leave it out",
    "readconfig": "use --config FILE.toml",
    "tpmdev": "there is no TPM; leave it out",
}
# What of -machine is as it is, and how QEMU says so; () is of no consequence.
AS_IT_IS: dict[str, tuple[str, ...]] = {
    "acpi": ("off",),
    "aclint": ("off",),
    "aia": ("none",),
    "graphics": ("off",),
    "iommu-sys": ("off",),
    "usb": ("off",),
    "dump-guest-core": (),
    "mem-merge": (),
}


def find_firmware(text: str) -> Path:
    """The file that a -bios names, or the name itself if there is none."""
    given = path("-bios", text)
    if os.path.exists(given) or "/" in text:
        return given
    for folder in FIRMWARE:
        for name in (text, text.removeprefix(OPENSBI)):
            if os.path.isfile(found := Path(folder, name)):
                return found
    kept = cache_directory() / "guest/current/firmware" / text.removeprefix(OPENSBI)
    if not kept.is_file() and text.startswith((OPENSBI, "fw_")):
        raise ConfigError(
            f"-bios {text}: no such file; apt install opensbi, or start with -bios default, the built-in SBI"
        )
    return kept if kept.is_file() else given


def read_accel(text: str) -> dict[str, Any]:
    """Of several the first that is available is taken, which is tcg: for others' sake no machine is refused."""
    if text == "help":
        raise Help("Accelerators:\ntcg")
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
        if text == "help":
            raise Help("none")
        one_of(option, text, ("none",), f"; there is no {what}, use {option} none")
        return {}

    return read


def read_name(text: str) -> dict[str, Any]:
    """The name is for QEMU's window and process list."""
    pairs("-name", text, "guest", ("guest", "debug-threads"))
    return {}


def read_rtc(text: str) -> dict[str, Any]:
    given = pairs("-rtc", text, "base", ("base", "clock", "driftfix"))
    for name, value in (("base", "utc"), ("clock", "host"), ("driftfix", "none")):
        one_of(f"-rtc {name}=", given.get(name, value), (value,), f"; the clock is the host's, use {name}={value}")
    return {}


def refuse_flash(option: str, text: str) -> None:
    """Says that there is none, whatever else the option has; QEMU takes it by -drive and by -machine."""
    if any(re.match("(if=)?pflash", item) for item in split_commas(text)):
        raise ConfigError(f"{option} {text}: {NO_FLASH}")


def check_machine(name: str, value: str) -> None:
    """A property of -machine that AS_IT_IS has."""
    if AS_IT_IS[name]:
        one_of(f"-machine {name}=", value, AS_IT_IS[name])
