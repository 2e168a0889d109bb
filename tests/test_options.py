"""The command line: every option reaches the field it is for, and files and arguments mean the same."""

import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem import fdt
from smp import cli, cpu, host, options
from smp.boot import check_engine
from smp.config import (
    DeviceConfig,
    DriveConfig,
    FsdevConfig,
    IothreadConfig,
    MachineConfig,
    NetdevConfig,
    SerialConfig,
)
from smp.config_check import check
from smp.cpu import ConfigError, parse_cpu
from smp.device_options import DEVICES, NEEDED
from smp.vsock_options import VSOCK

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


def parse(*arguments: str) -> MachineConfig:
    return options.parse(list(arguments))


LISTENING = (("server", "on"), ("wait", "off"))


def test_nothing_given_is_the_default_machine():
    assert parse() == MachineConfig()
    assert parse().serials == (SerialConfig("mon:stdio"),)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["-M", "virt"], {}),
        (
            ["--machine", "virt,dumpdtb=a,,b.dtb,dtb-randomness=off"],
            {"dumpdtb": Path("a,b.dtb"), "dtb_randomness": False},
        ),
        (["-machine", "type=virt,accel=kvm"], {}),
        (["-smp", "4"], {"harts": 4}),
        (["--smp=4"], {"harts": 4}),
        (["-smp", "cpus=8,sockets=2,cores=2,threads=2"], {"harts": 8}),
        (["-smp", "8,sockets=2"], {"harts": 8}),
        (["-smp", "sockets=2,cores=3"], {"harts": 6}),
        (["-smp", "4,maxcpus=4"], {"harts": 4}),
        (["-m", "64M"], {"ram": 64 * MIB}),
        (["-m", "1024"], {"ram": 1024 * MIB}),
        (["-m", "size=1.5g"], {"ram": 1536 * MIB}),
        (["-m", "16777216b"], {"ram": 16 * MIB}),
        (["-kernel", "a,b"], {"kernel": Path("a,b")}),
        (["-initrd", "i", "-append", "a=b, c"], {"initrd": Path("i"), "append": "a=b, c"}),
        (["-append", ""], {"append": ""}),
        (["-bios", "none"], {"bios": "none"}),
        (["-bios", "fw.bin"], {"bios": Path("fw.bin")}),
        (["-dtb", "a.dtb"], {"dtb": Path("a.dtb")}),
        (["-drive", "file=d.img"], {"drives": (DriveConfig(Path("d.img")),)}),
        (
            ["-drive", "file=a,,b=c,format=raw,if=none,id=d,readonly=on,snapshot=on"],
            {"drives": (DriveConfig(Path("a,b=c"), "d", "none", True, True, "raw"),)},
        ),
        (["-drive", "file=a", "-drive", "file=b"], {"drives": (DriveConfig(Path("a")), DriveConfig(Path("b")))}),
        (["-snapshot"], {"snapshot": True}),
        (["-device", "virtio-rng-device"], {"devices": (DeviceConfig("virtio-rng-device"),)}),
        (
            ["-device", "virtio-blk-device,drive=d,serial=x"],
            {"devices": (DeviceConfig("virtio-blk-device", (("drive", "d"), ("serial", "x"))),)},
        ),
        (["-device", "virtio-rng"], {"devices": (DeviceConfig("virtio-rng-device"),)}),
        (["-device", "virtio-rng-pci"], {"devices": (DeviceConfig("virtio-rng-device", (), "virtio-rng-pci"),)}),
        (
            ["-device", "virtio-serial-pci-non-transitional,bus=pcie.0,addr=0x4,vectors=4"],
            {
                "devices": (
                    DeviceConfig(
                        "virtio-serial-device",
                        (("bus", "pcie.0"), ("addr", "0x4"), ("vectors", "4")),
                        "virtio-serial-pci-non-transitional",
                    ),
                )
            },
        ),
        (
            ["-fsdev", "local,id=f,path=a,,b,security_model=mapped,readonly=on,multidevs=forbid,fmode=0640"],
            {"fsdevs": (FsdevConfig(Path("a,b"), "f", "mapped", True, "forbid", modes=(0o640, 0o700)),)},
        ),
        (
            ["-virtfs", "local,path=p,mount_tag=t,security_model=none", "-device", "virtio-9p-pci,fsdev=f,mount_tag=g"],
            {
                "fsdevs": (FsdevConfig(Path("p"), "t", "none", option="-virtfs"),),
                "devices": (
                    DeviceConfig("virtio-9p-device", (("fsdev", "t"), ("mount_tag", "t"))),
                    DeviceConfig("virtio-9p-device", (("fsdev", "f"), ("mount_tag", "g")), "virtio-9p-pci"),
                ),
            },
        ),
        (
            ["--share", "a,b"],
            {
                "fsdevs": (FsdevConfig(Path("a,b"), "share", "none", multidevs="remap", option="-share"),),
                "devices": (DeviceConfig("virtio-9p-device", (("fsdev", "share"), ("mount_tag", "share"))),),
            },
        ),
        (["-object", "iothread,id=t"], {"iothreads": (IothreadConfig("t"),)}),
        (
            ["-object", "iothread,id=t,poll-max-ns=9,poll-grow=2,poll-shrink=0"],
            {"iothreads": (IothreadConfig("t", 9, 2, 0),)},
        ),
        (["-object", "rng-random,filename=/dev/urandom,id=r"], {"rngs": ("r",)}),
        (["-M", "virt,iothreads=2,poll-max-ns=0"], {"spread": 2, "poll_max_ns": 0}),
        (["-nographic"], {"nographic": True}),
        (["-display", "none", "-monitor", "none"], {}),
        (["-nodefaults"], {"serials": ()}),
        (["-nodefaults", "-serial", "stdio"], {"serials": (SerialConfig("stdio"),)}),
        (["-serial", "none"], {"serials": ()}),
        (["-serial", "file:a,b"], {"serials": (SerialConfig("file", "a,b"),)}),
        (["-serial", "unix:/s,server=on,wait=off"], {"serials": (SerialConfig("unix", "/s", "", LISTENING),)}),
        (["-serial", "unix:/s,server,wait=off"], {"serials": (SerialConfig("unix", "/s", "", LISTENING),)}),
        (["-serial", "fd:2"], {"serials": (SerialConfig("fd", "2"),)}),
        (["-chardev", "fd,fd=1,id=c"], {"chardevs": (SerialConfig("fd", "1", "c"),)}),
        (["-chardev", "pty,id=c"], {"chardevs": (SerialConfig("pty", "", "c"),)}),
        (["-chardev", "socket,path=/s,id=c"], {"chardevs": (SerialConfig("unix", "/s", "c"),)}),
        (
            ["-chardev", "socket,path=/s,server=on,wait=off,id=c"],
            {"chardevs": (SerialConfig("unix", "/s", "c", LISTENING),)},
        ),
        (
            ["-serial", "tcp:[::1]:23,nodelay"],
            {"serials": (SerialConfig("tcp", "[::1]:23", "", (("nodelay", "on"),)),)},
        ),
        (["-serial", "tcp::23"], {"serials": (SerialConfig("tcp", ":23"),)}),
        (["-chardev", "socket,port=23,id=c"], {"chardevs": (SerialConfig("tcp", ":23", "c"),)}),
        (["-serial", "pipe:/p"], {"serials": (SerialConfig("pipe", "/p"),)}),
        (["-serial", "chardev:c"], {"serials": (SerialConfig("chardev", "c"),)}),
        (
            ["-nographic", "-chardev", "stdio,mux=on,signal=off,id=c"],
            {"chardevs": (SerialConfig("mon:stdio", "", "c", (("signal", "off"),)),), "nographic": True},
        ),
        (["-chardev", "stdio,id=c"], {"chardevs": (SerialConfig("stdio", "", "c"),), "serials": ()}),
        (
            ["-chardev", "file,path=/f,append=on,input-path=/i,id=c"],
            {"chardevs": (SerialConfig("file", "/f", "c", (("append", "on"), ("input-path", "/i"))),)},
        ),
        (["-netdev", "hubport,id=n,hubid=1"], {"netdevs": (NetdevConfig("hubport", "n", (("hubid", "1"),)),)}),
        (
            ["-netdev", "user,id=n,hostfwd=tcp::1-:2,hostfwd=udp::3-:4"],
            {"netdevs": (NetdevConfig("user", "n", (("hostfwd", "tcp::1-:2"), ("hostfwd", "udp::3-:4"))),)},
        ),
        (["-nic", "none", "-net", "none"], {}),
        (
            ["-nic", "user,model=virtio-net-pci,mac=52:54:00:00:00:01,ipv6=off"],
            {
                "nics": (
                    (
                        NetdevConfig("user", "", (("ipv6", "off"),)),
                        DeviceConfig("virtio-net-device", (("mac", "52:54:00:00:00:01"),), "virtio-net-pci"),
                    ),
                )
            },
        ),
        (
            ["-object", "filter-dump,id=f,netdev=n,file=a.pcap"],
            {"objects": (DeviceConfig("filter-dump", (("id", "f"), ("netdev", "n"), ("file", "a.pcap"))),)},
        ),
        (["-no-reboot"], {"reboot": False}),
        (["-d", "int,unimp", "-D", "log"], {"log": frozenset({"int", "unimp"}), "log_file": Path("log")}),
        (["-accel", "tcg,thread=multi"], {}),
        (["-accel", "tcg,tb-size=64"], {"tb_size": 64 << 20}),
        (["-accel", "tcg,tb-size=256K"], {"tb_size": 256 << 10}),
        (["--engine", "interp", "--stats"], {"engine": "interp", "stats": True}),
        (["--engine", "jit"], {"engine": "jit"}),
        (["-d", "exec"], {"engine": "interp", "log": frozenset({"exec"})}),
        (["-d", "exec", "--engine", "jit"], {"engine": "jit", "log": frozenset({"exec"})}),
        (["-smp", "2", "-smp", "3"], {"harts": 3}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_reaches_its_field(arguments, fields):
    assert parse(*arguments) == MachineConfig(**fields)


def test_every_option_has_a_text_in_help():
    text = options.help_text()
    for option in options.OPTIONS:
        assert f"-{option.names[-1]}" in text and option.about
    assert max(map(len, text.splitlines())) <= 110


def test_every_name_belongs_to_one_option():
    assert len(options.BY_NAME) == sum(len(option.names) for option in options.OPTIONS)


@pytest.mark.parametrize(
    "arguments",
    ["-h", "--help", "-version", "-cpu help", "-d help", "-device help", "-netdev help", "-nic help", "-M help"],
)
def test_help_goes_to_stdout_with_status_0(arguments, capsys):
    assert cli.main(arguments.split()) == 0
    out, err = capsys.readouterr()
    assert out and not err


def test_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == options.VERSION


# Engines


@pytest.fixture
def x86(monkeypatch):
    """This host is x86-64 and has what the translator needs, but for the names given."""

    def lacking(*names: str) -> None:
        from llvmlite import binding

        monkeypatch.setattr(host.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(binding, "get_host_cpu_features", lambda: {n: n not in names for n in host.NEEDED})

    return lacking


def test_the_translator_is_the_default_where_the_host_can_run_it(x86, capsys):
    x86()
    assert parse().engine == "jit"
    check_engine(parse())
    for asked in ("-version", "-h"):
        assert cli.main([asked]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith("jit")


@pytest.mark.parametrize("name", host.NEEDED)
def test_the_interpreter_is_the_default_without_a_feature(x86, name, capsys):
    x86(name)
    assert parse().engine == "interp"
    check_engine(parse())
    for asked in ("-version", "-h"):
        assert cli.main([asked]) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[-1].endswith(f"interp (this processor has no {name})") and not err
    for engine in ("jit", "check"):
        with pytest.raises(ConfigError, match=f"--engine {engine}: this processor has no {name}; use --engine interp"):
            check_engine(parse("--engine", engine))


def test_the_interpreter_is_the_default_on_other_architectures(monkeypatch):
    monkeypatch.setattr(host.platform, "machine", lambda: "aarch64")
    assert parse().engine == "interp"
    check_engine(parse())
    with pytest.raises(ConfigError, match="--engine jit: this host is aarch64, not x86_64; use --engine interp"):
        check_engine(parse("--engine", "jit"))


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=3))
def test_escaped_values_come_back(values):
    text = ",".join(f"k{n}={options.escape(value)}" for n, value in enumerate(values))
    known = [f"k{n}" for n in range(len(values))]
    assert list(options.pairs("-x", text, "k0", known).values()) == values


@given(st.integers(0, 1 << 40))
def test_sizes_in_bytes_are_exact(size):
    assert options.size("-m", f"{size}b") == size


# Configuration files


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "machine.toml").write_text(text)
        return str(tmp_path / "machine.toml")

    return write


def test_a_file_means_what_the_arguments_mean(toml):
    file = toml(
        'machine = "virt"\nsmp = 4\nm = "64M"\nkernel = "k"\nappend = "x y"\nno-reboot = true\nsnapshot = false\n'
        'drive = ["file=a,,b,if=none,id=d"]\nd = "int"\n'
        '[[device]]\ndriver = "virtio-blk-device"\ndrive = "d"\n'
    )
    arguments = ["-smp", "4", "-m", "64M", "-kernel", "k", "-append", "x y", "-no-reboot", "-d", "int"]
    arguments += ["-drive", "file=a,,b,if=none,id=d", "-device", "virtio-blk-device,drive=d"]
    assert parse("--config", file) == parse(*arguments)


def test_tables_are_lists_of_properties(toml):
    file = toml('smp = { cores = 6 }\n[[drive]]\nfile = "a,b"\nreadonly = true\n')
    config = parse("--config", file)
    assert config.harts == 6 and config.drives == (DriveConfig(Path("a,b"), readonly=True),)


def test_the_command_line_overrides_a_file_wherever_it_is_named(toml):
    file = toml('smp = 4\nm = "64M"\nserial = "null"\ndrive = "file=a"\n')
    for arguments in (["-smp", "2", "--config", file], ["--config", file, "-smp", "2"]):
        config = parse(*arguments, "-serial", "pty", "-drive", "file=b")
        assert (config.harts, config.ram) == (2, 64 * MIB)
        assert config.serials == (SerialConfig("pty"),)
        assert [drive.file.name for drive in config.drives] == ["a", "b"]


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/*.toml")), ids=lambda file: file.name)
def test_the_projects_configurations_are_machines(file):
    assert isinstance(parse("--config", str(file)), MachineConfig)


# -cpu


def test_every_extension_is_on_by_default_and_can_be_turned_off():
    for row in cpu.EXTENSIONS:
        assert parse_cpu("rv64").has(row.name)
    for name in cpu.OPTIONAL:
        config = parse_cpu(f"rv64,{name}=off")
        assert not config.has(name)
        assert name not in config.isa_extensions()
    assert parse_cpu("max") == parse_cpu("rv64")


@given(st.lists(st.sampled_from(cpu.OPTIONAL), unique=True))
def test_whatever_is_turned_off_takes_along_what_requires_it(names):
    config = parse_cpu(",".join(["rv64", *(f"{name}=off" for name in names)]))
    assert not any(config.has(name) for name in names)
    for row in cpu.EXTENSIONS:
        if config.has(row.name):
            assert all(config.has(need) for need in row.requires)


def test_bits_are_stable():
    assert parse_cpu("rv64").misa == 0x8000_0000_0014_112D
    assert (cpu.EXT_ZACAS, cpu.EXT_SSTC, cpu.EXT_SV57) == (1 << 38, 1 << 54, 1 << 57)


def test_isa_string():
    text = parse_cpu("rv64,zfa=off,svadu=off").isa_string()
    assert text.startswith("rv64imafdc_zicbom_zicbop_")
    assert "_zfa" not in text and "_svadu" not in text and "pmp" not in text and "sv57" not in text
    assert parse_cpu("rv64,f=off").isa_string().startswith("rv64imac_")
    assert parse_cpu("rv64,d=off").has("zca") and not parse_cpu("rv64,d=off").has("zcd")


@pytest.mark.parametrize(
    ("text", "bits"),
    [("rv64", 57), ("rv64,sv57=off", 48), ("rv64,sv48=off", 39), ("rv64,sv48=on", 48), ("rv64,sv39=on", 39),
     ("rv64,sv57=on", 57), ("rv64,sv39=on,sv48=on,sv57=on", 57)],
)  # fmt: skip
def test_mmu_modes_are_limited_as_in_qemu(text, bits):
    assert parse_cpu(text).mmu == bits


def test_asking_for_an_extension_without_what_it_requires_is_refused():
    with pytest.raises(ConfigError, match="-cpu d=on: needs f=on"):
        parse_cpu("rv64,f=off,d=on")


def test_what_is_never_there_may_be_turned_off():
    assert parse_cpu("rv64,v=off,h=off") == parse_cpu("rv64")


# The command


def test_the_machine_is_run_with_what_was_asked_for(monkeypatch, tmp_path):
    asked = []
    machine = ModuleType("smp.machine")
    machine.run_machine = lambda config: asked.append(config) or 7
    monkeypatch.setitem(sys.modules, "smp.machine", machine)
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x6f\0\0\0")
    assert cli.main(["-kernel", str(kernel), "-smp", "2"]) == 7
    assert asked == [MachineConfig(harts=2, kernel=kernel)]


def test_dumpdtb_writes_the_tree_and_starts_nothing(tmp_path, capsys):
    assert cli.main(["-M", f"virt,dumpdtb={tmp_path}/a.dtb", "-smp", "3"]) == 0
    root, _ = fdt.decode((tmp_path / "a.dtb").read_bytes())
    assert [child.name for child in root.find("/cpus").children] == ["cpu@0", "cpu@1", "cpu@2", "cpu-map"]
    assert capsys.readouterr() == ("", "")


def test_block_devices_are_in_the_order_of_their_slots():
    config = parse(
        *("-drive", "file=a,if=none,id=a", "-drive", "file=b"),
        *("-device", "virtio-rng-device", "-device", "virtio-blk-device,drive=a"),
    )
    assert [drive.file.name for drive, _ in config.block_devices()] == ["b", "a"]


@pytest.mark.parametrize("driver", [name for name in DEVICES if name.startswith("virtio-")])
@pytest.mark.parametrize("ending", ["-device", "-pci", "-pci-transitional", "-pci-non-transitional", ""])
def test_every_virtio_device_has_qemus_spellings(driver: str, ending: str) -> None:
    assert driver.endswith("-device")
    given = [f"{name}=1" for name in [NEEDED.get(driver)] if name]
    if driver == VSOCK:
        given = ["guest-cid=3", "path=socket"]
    (device,) = parse("-device", ",".join([driver.removesuffix("-device") + ending, *given])).devices
    assert device.driver == driver
    assert bool(device.on_pci) == ("pci" in ending)
    (described,) = parse("-device", ",".join([driver, "event_idx=off", "iommu_platform=off", *given])).devices
    assert described.get("event_idx") == "off"


def test_pci_is_said_to_be_absent_once_and_only_if_asked_for(tmp_path):
    from smp.machine import say_unimplemented

    asked = ["-device", "virtio-rng-pci", "-device", "virtio-serial", "-device", "virtio-rng-pci"]
    with open(tmp_path / "log", "w+") as log:
        say_unimplemented(parse(*asked, "-d", "int"), log.fileno())
        say_unimplemented(parse("-device", "virtio-rng-device", "-d", "unimp"), log.fileno())
        assert log.read() == ""
        say_unimplemented(parse(*asked, "-d", "unimp"), log.fileno())
        log.seek(0)
        assert log.read() == "unimp: the machine has no PCI: virtio-rng-pci on virtio-mmio\n"


def test_a_command_line_that_was_written_for_qemu_is_taken(tmp_path):
    (tmp_path / "disk").write_bytes(bytes(512))
    (tmp_path / "kernel").write_bytes(b"\x6f\0\0\0")
    line = f"""-M virt -accel tcg,thread=multi -smp 4 -m 2G -nographic -kernel {tmp_path}/kernel
        -drive if=none,file={tmp_path}/disk,format=raw,id=hd0 -object iothread,id=io0,poll-max-ns=32768
        -device virtio-blk-pci,drive=hd0,bus=pcie.0,addr=0x3,bootindex=1,iothread=io0,num-queues=4,queue-size=128
        -object rng-random,filename=/dev/urandom,id=rng0 -device virtio-rng-pci,rng=rng0,disable-legacy=on,vectors=0
        -device virtio-serial-pci,packed=on,id=bus0 -chardev null,id=c -device virtconsole,chardev=c"""
    config = parse(*line.split())
    check(config)
    assert [device.driver for device in config.devices] == [
        *("virtio-blk-device", "virtio-rng-device", "virtio-serial-device", "virtconsole")
    ]
