"""The command line: one table of options, from which parsing, configuration files and `-h` are derived.

Pure but for reading --config files and looking for firmware. A row's reader turns the option's text into fields of
`MachineConfig`; `ConfigError` is a user's mistake, `Help` something to print instead of starting a machine.
"""

import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from smp import cpu
from smp.char_options import free_terminal, read_chardev, read_qmp, read_serial
from smp.config import BUILT_IN_SBI, NO_FIRMWARE, MachineConfig
from smp.cpu import ConfigError, near
from smp.device_options import DEVICES, read_device
from smp.drive_options import read_drive
from smp.global_options import check_drivers, read_global, with_globals
from smp.host import default_engine_text
from smp.net_options import read_net, read_netdev, read_nic
from smp.object_options import read_object
from smp.option_text import Help, escape, number, one_of, pairs, path, size, switch
from smp.qemu_options import (
    AS_IT_IS,
    REFUSED,
    absent,
    check_machine,
    find_firmware,
    read_accel,
    read_echr,
    read_mon,
    read_name,
    read_rtc,
    refuse_flash,
)
from smp.ram_options import read_numa
from smp.share_options import read_fsdev, read_share, read_virtfs
from smp.version import VERSION

Fields = dict[str, Any]

LOG_ITEMS = {
    "int": "traps and interrupts that are taken",
    "exec": "every block of instructions that is entered",
    "in_asm": "guest code of every block that is translated",
    "out_asm": "host code of every block that is translated",
    "guest_errors": "what a guest does that no manual allows",
    "unimp": "what a guest asks for that is not there",
}


# One reader an option, in the order of the table --------------------------------------------------------------


NUMBERS_OF_MACHINE = {"iothreads": "spread", "poll-max-ns": "poll_max_ns"}


def read_machine(text: str) -> Fields:
    if text == "help":
        raise Help("Supported machines are:\nvirt                 QEMU's RISC-V virt board (default)")
    refuse_flash("-machine", text)
    own = ("type", "dumpdtb", "dtb-randomness", "accel", "memory-backend", *NUMBERS_OF_MACHINE)
    given = pairs("-machine", text, "type", (*own, *AS_IT_IS))
    one_of("-machine", given.get("type", "virt"), ("virt",))
    fields: Fields = {}
    if "dumpdtb" in given:
        fields["dumpdtb"] = path("-machine dumpdtb", given["dumpdtb"])
    if "dtb-randomness" in given:
        fields["dtb_randomness"] = switch("-machine", "dtb-randomness", given["dtb-randomness"])
    if "accel" in given:
        read_accel(given["accel"])
    if "memory-backend" in given:
        fields["ram_users"] = (("-machine memory-backend", given["memory-backend"]),)
    for name in given.keys() & AS_IT_IS.keys():
        check_machine(name, given[name])
    for key, name in NUMBERS_OF_MACHINE.items():
        if key in given:
            fields[name] = number(f"-machine {key}", given[key])
    return fields


def read_cpu(text: str) -> Fields:
    if text == "help":
        raise Help(cpu.help_text())
    return {"cpu": cpu.parse_cpu(text)}


def read_smp(text: str) -> Fields:
    given = pairs("-smp", text, "cpus", ("cpus", "sockets", "cores", "threads", "maxcpus"))
    counts = {key: number("-smp", value) for key, value in given.items()}
    product = 1
    shape = [key for key in ("sockets", "cores", "threads") if key in counts]
    for key in shape:
        product *= counts[key]
    harts = counts.get("cpus", product)
    # A level that is not given is as large as it takes.
    if product != harts and (len(shape) == 3 or not product or harts % product):
        raise ConfigError(f"-smp {text}: {' * '.join(shape)} is {product}, not {harts}; make them equal")
    if counts.get("maxcpus", harts) != harts:
        raise ConfigError(f"-smp {text}: harts can't be added later; leave maxcpus out")
    return {"harts": harts}


def read_m(text: str) -> Fields:
    return {"ram": size("-m", pairs("-m", text, "size", ("size",)).get("size", ""))}


def file_reader(option: str, name: str) -> Callable[[str], Fields]:
    return lambda text: {name: path(option, text)}


def read_append(text: str) -> Fields:
    return {"append": text}


def read_bios(text: str) -> Fields:
    return {"bios": text if text in (BUILT_IN_SBI, NO_FIRMWARE) else find_firmware(text)}


def read_d(text: str) -> Fields:
    if text == "help":
        raise Help("\n".join(["Log items:", *(f"  {name:13} {about}" for name, about in LOG_ITEMS.items())]))
    items = text.split(",")
    for item in items:
        if item not in LOG_ITEMS:
            raise ConfigError(f"-d {text}: no log item {item!r}{near(item, LOG_ITEMS)} (-d help lists them)")
    return {"log": frozenset(items)}


def read_sandbox(text: str) -> Fields:
    """QEMU's further properties all mean less than `on` here: what they deny is denied, nothing can be allowed."""
    denials = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
    given = pairs("-sandbox", text, "enable", ("enable", *denials))
    for name in denials:
        if name in given:
            one_of(f"-sandbox {name}=", given[name], ("deny",), "; use deny, or -sandbox off")
    return {"sandbox": switch("-sandbox", "enable", given.get("enable", "on"))}


def read_engine(text: str) -> Fields:
    return {"engine": one_of("--engine", text, ("interp", "jit", "check"))}


def read_version(_: str) -> Fields:
    raise Help(f"hartbeat version {VERSION}, default engine {default_engine_text()}")


def read_help(_: str) -> Fields:
    raise Help(help_text())


def each(name: str, read: Callable[[str], tuple[Any, ...]]) -> Callable[[str], Fields]:
    """Of an option that may be given several times."""
    return lambda text: {name: read(text)}


def flag(**fields: Any) -> Callable[[str], Fields]:
    return lambda _: fields


# The table ----------------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """`argument` is '' for a flag. `many` adds to what is there, otherwise the last one counts."""

    names: tuple[str, ...]  # the first is the key in a configuration file
    argument: str
    about: str
    read: Callable[[str], Fields]
    many: bool = False


# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option(("machine", "M"), "virt[,dumpdtb=FILE][,dtb-randomness=off][,iothreads=N][,poll-max-ns=N]",
           "the machine; dumpdtb writes its device tree and ends; iothreads: I/O processes besides the main one, "
           "to which devices go in turn; poll-max-ns: for how long I/O processes spin", read_machine),
    Option(("cpu",), "rv64|max[,EXT=on|off...]", "the harts' ISA extensions; -cpu help lists them", read_cpu),
    Option(("smp",), "[cpus=]N[,sockets=S][,cores=C][,threads=T]", "number of harts, 1 to 128 (default 1)", read_smp),
    Option(("m",), "[size=]SIZE", "RAM: 512M, 2G, or a number of MiB (default 128M)", read_m),
    Option(("kernel",), "FILE", "Linux Image or Image.gz, ELF, or raw binary", file_reader("-kernel", "kernel")),
    Option(("initrd",), "FILE", "initial RAM disk for the kernel", file_reader("-initrd", "initrd")),
    Option(("append",), "TEXT", "the kernel's command line", read_append),
    Option(("bios",), "default|none|FILE",
           "default: the built-in SBI starts the kernel in S-mode; none: the kernel starts in M-mode; "
           "FILE: M-mode firmware such as OpenSBI fw_dynamic; a name without a folder is looked for where QEMU's "
           "are, too", read_bios),
    Option(("dtb",), "FILE", "device tree to use instead of the machine's own", file_reader("-dtb", "dtb")),
    Option(("drive",), "file=FILE[,if=virtio|none][,id=ID][,format=raw|qcow2|...][,readonly=on][,snapshot=on]",
           "a disk; with if=none a -device virtio-blk-device,drive=ID shows it to the guest; "
           "formats other than raw take qemu-storage-daemon; throttling.iops-total=N and throttling.bps-total=N limit "
           "requests and bytes a second, as -read and -write either way, and -max what may go at once",
           read_drive, True),
    Option(("snapshot",), "", "write to no drive: changes are kept in memory and lost", flag(snapshot=True)),
    Option(("share",), "FOLDER", "a folder that the guest mounts by the tag 'share': -virtfs local,mount_tag=share,"
           "security_model=none,multidevs=remap,path=FOLDER", read_share, True),
    Option(("virtfs",), "local,path=FOLDER,mount_tag=NAME,security_model=MODEL[,id=ID][,readonly=on]...",
           "a folder of the host and its virtio-9p device, which the guest mounts by NAME", read_virtfs, True),
    Option(("fsdev",), "local,id=ID,path=FOLDER,security_model=MODEL[,readonly=on][,multidevs=...][,fmode=..,dmode=..]",
           "a folder for a -device virtio-9p-device,fsdev=ID, or with virtiofsd,id=ID,path=FOLDER one that a virtiofsd "
           "serves to a -device vhost-user-fs-device,fsdev=ID,tag=NAME. MODEL none: files have the guest's modes; "
           "passthrough: its owners too (root may); mapped-xattr: both are extended attributes, and the "
           "host's modes are fmode=0600 and dmode=0700. multidevs=remap|forbid|warn is for "
           "folders with several file systems in them",
           read_fsdev, True),
    Option(("device",), "DRIVER[,PROPERTY=VALUE...]", "a device; -device help lists them", read_device, True),
    Option(("netdev",), "user|tap|stream|dgram|socket|vhost-user|hubport,id=ID[,PROPERTY=VALUE...]",
           "the host's end of a network card; -netdev help lists the properties", each("netdevs", read_netdev), True),
    Option(("nic",), "none|user|tap|...[,model=virtio][,mac=ADDRESS][,PROPERTY=VALUE...]",
           "a -netdev and its card", each("nics", read_nic), True),
    Option(("net",), "none", "no network, as it is without this option", read_net),
    Option(("numa",), "node[,memdev=ID]", "one node, which has all harts and all RAM", read_numa, True),
    Option(("object",), "filter-dump|iothread|rng-random|rng-builtin|memory-backend-memfd,id=ID[,PROPERTY=VALUE...]",
           "filter-dump,netdev=ID,file=FILE[,maxlen=BYTES][,queue=all|rx|tx] writes what passes a netdev to a file, "
           "as tcpdump does; iothread[,poll-max-ns=N] is an I/O process of its own for the devices that name it, "
           "which spins for up to N ns before it sleeps (default 200000, 0: never); rng-random and rng-builtin are "
           "the host's random bytes, which a virtio-rng has without them too; memory-backend-memfd,size=SIZE is RAM as "
           "it is",
           read_object, True),
    Option(("chardev",), "stdio|pty|null|file|pipe|socket|fd,id=ID[,PROPERTY=VALUE...]",
           "the host's end of a port, or the socket of a vhost-user back-end: stdio[,signal=off][,mux=on] "
           "(mux: Ctrl-A commands); file,path=FILE[,append=on][,input-path=FILE]; "
           "pipe,path=FIFO (or FIFO.in and FIFO.out); "
           "socket,path=FILE or socket,host=NAME,port=N, which connects [,reconnect=SECONDS] or with server=on listens "
           "and waits for somebody [,wait=off] [,nodelay=on]; fd,fd=N is output to a descriptor that the command was "
           "started with", read_chardev, True),
    Option(("serial",),
           "[mon:]stdio|pty|null|none|file:PATH|pipe:PATH|unix:PATH[,...]|tcp:HOST:PORT[,...]|chardev:ID|fd:N",
           "the host's end of the UART, as -chardev has them (default mon:stdio: the terminal, Ctrl-A x ends the "
           "machine; or none, if a -chardev has the terminal)", read_serial),
    Option(("nographic",), "", "the UART is on the terminal, as it is without this option", flag(nographic=True)),
    Option(("nodefaults",), "", "no UART on the terminal unless -serial asks for it", flag(nodefaults=True)),
    Option(("display",), "none", "there is no display", absent("-display", "display")),
    Option(("qmp",), "unix:PATH,server=on,wait=off|tcp:HOST:PORT[,...]|stdio|chardev:ID|...",
           "a monitor for programs, which speaks QMP at what -serial takes: it stops, resets and ends the machine, and "
           "changes its devices", read_qmp, True),
    Option(("mon",), "chardev=ID,mode=control", "the same at a -chardev; of mode readline there is no monitor, as "
           "Ctrl-A c on a -chardev with mux=on says", read_mon, True),
    Option(("S",), "", "do not let the machine begin before a monitor says cont", flag(paused=True)),
    Option(("echr",), "CODE", "the character of the terminal's commands instead of Ctrl-A (1)", read_echr),
    Option(("global",), "DRIVER.PROPERTY=VALUE", "a property of every -device DRIVER that does not give it; and "
           "virtio-mmio.force-legacy=false, as it is", read_global, True),
    Option(("name",), "NAME", "accepted, for QEMU's command lines", read_name),
    Option(("no-user-config",), "", "no file of options is read but a --config's, as without this option", flag()),
    Option(("rtc",), "base=utc[,clock=host]", "the clock is the host's, as without this option", read_rtc),
    Option(("vga",), "none", "there is no graphics card", absent("-vga", "graphics card")),
    Option(("monitor",), "none", "there is no monitor", absent("-monitor", "monitor")),
    Option(("parallel",), "none", "there is no parallel port", absent("-parallel", "parallel port")),
    Option(("no-reboot",), "", "end when the guest reboots", flag(reboot=False)),
    Option(("d",), "ITEM[,ITEM...]", "log to stderr; -d help lists the items", read_d),
    Option(("D",), "FILE", "log to a file", file_reader("-D", "log_file")),
    Option(("accel",), "tcg|kvm|hvf[,tb-size=N]", "accepted, several too, for QEMU's command lines; tb-size is the "
           "size of the translator's code cache in MiB, or with a unit (128M)", read_accel),
    Option(("engine",), "interp|jit|check",
           "how instructions are executed: interpreted, or translated (x86-64 with BMI2, AVX and FMA), which is the "
           "default where the host can, but for -d exec; "
           "check compares the two on one hart, and ends at the first difference",
           read_engine),
    Option(("sandbox",), "on|off", "I/O processes may do nothing but what their devices need (default on)",
           read_sandbox),
    Option(("perfmap",), "", "write /tmp/perf-PID.map for the harts' processes, from which perf names translated code",
           flag(perfmap=True)),
    Option(("stats",), "", "print what the harts did when the machine ends", flag(stats=True)),
    Option(("config",), "FILE.toml", "read options from a file; the command line comes after it", flag()),
    Option(("version",), "", "print the version", read_version),
    Option(("h", "help"), "", "print this", read_help),
)
# fmt: on

BY_NAME = {name: option for option in OPTIONS for name in option.names}
IN_FILES = tuple(name for name in BY_NAME if name not in ("config", "version", "h", "help"))


def help_text() -> str:
    """What `-h` prints."""
    lines = ["usage: hartbeat [OPTION...]      every option may have one dash or two", ""]
    for option in OPTIONS:
        lines.append(f"{', '.join('-' + name for name in option.names)} {option.argument}".rstrip())
        lines += textwrap.wrap(option.about, 96, initial_indent=" " * 8, subsequent_indent=" " * 8)
    lines += ["", f"The default engine on this host: {default_engine_text()}"]
    return "\n".join(lines)


# From arguments and files to a MachineConfig ------------------------------------------------------------------


Given = tuple[Option, str]


def parse(arguments: list[str]) -> MachineConfig:
    """The machine that a command line asks for. `ConfigError`, or `Help` if there is something to print."""
    given = list(_from_arguments(arguments))
    files = [path("--config", text) for option, text in given if option.names[0] == "config"]
    sources = [*(list(_from_file(file)) for file in files), given]
    everywhere = [text for source in sources for option, text in source if option.names[0] == "global"]
    check_drivers(everywhere, tuple(DEVICES))
    fields: Fields = {}
    for source in sources:
        _apply(fields, source, everywhere)
    return _finish(fields)


def _from_arguments(arguments: list[str]) -> Iterator[Given]:
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument.strip("-") == "":
            raise ConfigError(f"{argument!r}: not an option; a disk is given as -drive file={argument}")
        name, equals, text = argument.lstrip("-").partition("=")
        option = BY_NAME.get(name)
        if option is None and name in REFUSED:
            raise ConfigError(f"{argument}: not available; {REFUSED[name]}")
        if option is None:
            raise ConfigError(f"{argument}: unknown option{near(name, BY_NAME)} (-h lists them)")
        if equals and not (argument.startswith("--") and option.argument):
            remedy = f"write {option_name(option)} VALUE" if option.argument else "it takes no value"
            raise ConfigError(f"{argument}: unknown option; {remedy}")
        if option.argument and not equals:
            text = next(rest, "--")
            if text == "--" or (text.startswith("-") and text.lstrip("-") in BY_NAME):
                raise ConfigError(f"{argument}: needs a value: {option.argument}")
        yield option, text


def option_name(option: Option) -> str:
    return f"-{option.names[0]}"


def _from_file(file: Path) -> Iterator[Given]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}; give a TOML file that can be read") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {file}: is not a text file in UTF-8; give a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config {file}: {error}; see configs/ for examples") from error
    for key, value in table.items():
        if key not in IN_FILES:
            hint = near(key, IN_FILES) or "; the keys are the names of the options in -h"
            raise ConfigError(f"--config {file}: unknown key {key!r}{hint}")
        option = BY_NAME[key]
        yield from ((option, text) for text in _texts(f"--config {file}: {key}", option, value))


def _texts(where: str, option: Option, value: object) -> list[str]:
    """What the option would have been given on a command line: one text for every time."""
    if not option.argument:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} = {value!r}: must be true or false")
        return [""] if value else []
    if option.many and isinstance(value, list):
        return [_text(where, item) for item in value]
    return [_text(where, value)]


def _text(where: str, value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={escape(_word(where, item))}" for key, item in value.items())
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where} = {value!r}: must be what the option takes on the command line, as a text")


def _word(where: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError(f"{where}: {value!r} must be a text, a number, true or false")


def _apply(fields: Fields, given: Iterable[Given], everywhere: list[str]) -> None:
    """Put one source's options into `fields`; what a later source gives counts more. `everywhere` is every -global."""
    uarts = 0
    for option, text in given:
        uarts += option.names[0] == "serial"
        if uarts > 1:
            raise ConfigError(f"-serial {text}: the machine has one UART; use -device virtconsole for more")
        if "\0" in text:
            raise ConfigError(f"{option_name(option)} {text!r}: a NUL character has no meaning; take it out")
        if option.names[0] == "device":
            text = with_globals(text, everywhere, tuple(DEVICES))
        for name, value in option.read(text).items():
            fields[name] = fields.get(name, ()) + value if option.many or name == "ram_users" else value


def _finish(fields: Fields) -> MachineConfig:
    if fields.pop("nodefaults", False):
        fields.setdefault("serials", ())
    free_terminal(fields)
    if "exec" in fields.get("log", ()):
        fields.setdefault("engine", "interp")  # which goes from block to block then, whatever the engine
    return MachineConfig(**fields)
