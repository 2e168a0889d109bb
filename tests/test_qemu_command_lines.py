"""Command lines that other programs make for QEMU: they are taken, and mean what they mean there."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from console import TIMEOUT, Console

from smp import engine, options, qemu_options
from smp.config import MachineConfig
from smp.config_check import check
from smp.cpu import ConfigError
from smp.devicetree import plan_boot
from smp.guest import Guest, default_guest
from smp.io_setup import io_config
from smp.option_text import Help
from smp.qemu_options import OPENSBI, find_firmware
from virtio.blk import Block
from virtio.chardev import Stdio
from virtio.console import Console as Ports
from virtio.ninep import Ninep
from virtio.rng import Rng

KUNIT = """-nodefaults -m 1024 -kernel {kernel} -no-reboot -nographic -accel kvm -accel hvf -accel tcg -serial stdio
    -machine virt -cpu rv64 -bios opensbi-riscv64-generic-fw_dynamic.bin"""
VIRTME = """-machine virt -bios default -m 1G -smp 2 -vga none -display none -parallel none -net none -echr 1 -no-reboot
    -fsdev local,id=virtfs1,path={folder},security_model=none,readonly=on,multidevs=remap
    -device virtio-9p-pci,fsdev=virtfs1,mount_tag=ROOTFS"""
VIRTIOFS = """-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem
    -chardev socket,id=charvirtfs5,path={socket} -device vhost-user-fs-pci,chardev=charvirtfs5,tag=ROOTFS"""
XV6 = """-machine virt -bios none -m 128M -smp 3 -nographic -global virtio-mmio.force-legacy=false
    -drive file={disk},if=none,format=raw,id=x0 -device virtio-blk-device,drive=x0,bus=virtio-mmio-bus.0"""
BUILDROOT = """-M virt -nographic -drive file={disk},format=raw,id=hd0 -device virtio-blk-device,drive=hd0
    -object rng-random,filename=/dev/urandom,id=rng0 -device virtio-rng-device,rng=rng0"""
RCORE = "-machine virt -nographic -bios {firmware} -device loader,file={kernel},addr=0x80200000"
SHELL = "-chardev stdio,id=console,signal=off,mux=on -serial chardev:console -mon chardev=console"
# What `vng --arch riscv64 --root DIR --run IMAGE --force-9p --cpus 4 --memory 1G --network user --rodir=/mnt/ro=DIR
# --rwdir=/mnt/rw=DIR -- 'uname -a; nproc; exit 3'` of virtme-ng 1.42 starts, but for -append.
SCRIPT = """-name virtme-ng -m 1G
    -fsdev local,id=virtfs5,path={folder},security_model=none,readonly=on,multidevs=remap
    -device virtio-9p-pci,fsdev=virtfs5,mount_tag=/dev/root
    -fsdev local,id=virtfs9,path={folder},security_model=none,readonly=on,multidevs=remap
    -device virtio-9p-pci,fsdev=virtfs9,mount_tag=virtme.guesttools
    -fsdev local,id=virtfs13,path={folder},security_model=none,multidevs=remap
    -device virtio-9p-pci,fsdev=virtfs13,mount_tag=virtme.initmount0
    -fsdev local,id=virtfs17,path={folder},security_model=none,readonly=on,multidevs=remap
    -device virtio-9p-pci,fsdev=virtfs17,mount_tag=virtme.initmount1
    -machine virt -bios default -parallel none -net none -smp 4 -vga none -display none
    -serial chardev:console -chardev file,id=console,path=/dev/null
    -chardev stdio,id=stdin,signal=on,mux=off
    -device virtio-serial-pci -device virtserialport,name=virtme.stdin,chardev=stdin
    -chardev file,id=stdout,path=/proc/self/fd/{stdout}
    -device virtio-serial-pci -device virtserialport,name=virtme.stdout,chardev=stdout
    -chardev file,id=stderr,path=/proc/self/fd/{stderr}
    -device virtio-serial-pci -device virtserialport,name=virtme.stderr,chardev=stderr
    -chardev file,id=dev_stdout,path=/proc/self/fd/{stdout}
    -device virtio-serial-pci -device virtserialport,name=virtme.dev_stdout,chardev=dev_stdout
    -chardev file,id=dev_stderr,path=/proc/self/fd/{stderr}
    -device virtio-serial-pci -device virtserialport,name=virtme.dev_stderr,chardev=dev_stderr
    -chardev file,id=ret,path={folder}/ret
    -device virtio-serial-pci -device virtserialport,name=virtme.ret,chardev=ret
    -device virtio-net-pci,netdev=n0 -netdev user,id=n0 -no-reboot -kernel {kernel}"""
APPEND = """virtme_hostname=virtme-ng virtme_root_user=1 rootfstype=9p
    rootflags=version=9p2000.L,trans=virtio,access=any,msize=524288 ro quiet init=/bin/sh --
    -c "mount -t tmpfs run /run; exec /run/virtme/guesttools/virtme-init\""""


def parse(line: str, *more: str) -> MachineConfig:
    config = options.parse([*line.split(), *more])
    check(config)
    return config


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    (tmp_path / "kernel").write_bytes(b"\x6f\0\0\0")
    return tmp_path / "kernel"


def test_kunit(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel.parent / f"{OPENSBI}fw_dynamic.bin").write_bytes(b"\x6f\0\0\0")
    monkeypatch.setattr(qemu_options, "FIRMWARE", ("/nonexistent", str(kernel.parent)))
    config = parse(KUNIT.format(kernel=kernel), "-append", "kunit.enable=1 console=ttyS0 kunit_shutdown=reboot")
    assert config.ram == 1 << 30 and not config.reboot
    assert config.bios == kernel.parent / f"{OPENSBI}fw_dynamic.bin"
    assert [end.kind for end in config.serials] == ["stdio"]


def test_firmware_by_name(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kernel.parent
    (folder / "debian").mkdir()
    (folder / "debian" / "fw_jump.bin").write_bytes(b"")
    monkeypatch.setattr(qemu_options, "FIRMWARE", (str(folder / "qemu"), str(folder / "debian")))
    monkeypatch.chdir(folder)
    assert find_firmware(f"{OPENSBI}fw_jump.bin") == folder / "debian" / "fw_jump.bin"
    assert find_firmware("kernel") == Path("kernel"), "the current folder comes first"
    assert find_firmware("./fw_jump.bin") == Path("./fw_jump.bin")
    with pytest.raises(ConfigError, match=r"-bios fw_none\.bin: no such file"):
        parse(f"-kernel {kernel} -bios fw_none.bin")


def test_virtme_ngs_shell(kernel: Path) -> None:
    config = parse(f"{VIRTME.format(folder=kernel.parent)} {SHELL} -kernel {kernel}")
    io = io_config(config)
    assert isinstance(io.serial, Stdio) and io.serial.mux and not io.serial.signals
    assert [type(device) for device in io.devices.values()] == [Ninep]
    io.close()


def test_virtme_ngs_script(kernel: Path) -> None:
    """Each stream is a port by its name, on a bus of its own; two that lead to one pipe are both open."""
    engine.load()  # a network card takes its natives when it is made
    (out, stdout), (err, stderr) = os.pipe(), os.pipe()
    line = SCRIPT.format(folder=kernel.parent, kernel=kernel, stdout=stdout, stderr=stderr)
    config = parse(line, "-append", APPEND)
    assert (config.harts, config.ram, config.reboot, config.append) == (4, 1 << 30, False, APPEND)
    io = io_config(config)
    shares = [device for device in io.devices.values() if isinstance(device, Ninep)]
    tags = [share.tag for share in shares]
    assert tags == [b"/dev/root", b"virtme.guesttools", b"virtme.initmount0", b"virtme.initmount1"]
    assert [share.session.tree.readonly for share in shares] == [True, True, False, True]
    buses = [device for device in io.devices.values() if isinstance(device, Ports)]
    ports = {port.name.decode(): port.host for bus in buses for port in bus.ports.values()}
    names = ("stdin", "stdout", "stderr", "dev_stdout", "dev_stderr", "ret")
    assert list(ports) == [f"virtme.{name}" for name in names] and len(buses) == len(names)
    stdin = ports["virtme.stdin"]
    assert isinstance(stdin, Stdio) and stdin.signals and not stdin.mux
    for name in names[1:]:
        ports[f"virtme.{name}"].write(f"to {name}\n".encode())
    assert os.read(out, 99) == b"to stdout\nto dev_stdout\n"
    assert os.read(err, 99) == b"to stderr\nto dev_stderr\n"
    assert (kernel.parent / "ret").read_bytes() == b"to ret\n", "virtme-ng's own status is what is written here"
    io.close()
    for end in (out, stdout, err, stderr):
        os.close(end)


def test_xv6s_makefile(kernel: Path) -> None:
    disk = kernel.parent / "fs.img"
    disk.write_bytes(bytes(4096))
    config = parse(f"{XV6.format(disk=disk)} -kernel {kernel}")
    boot = plan_boot(config)
    assert (boot.pc, boot.mode, config.harts) == (0x8000_0000, "M", 3)
    io = io_config(config)
    assert [(slot, type(device)) for slot, device in io.devices.items()] == [(0, Block)]
    io.close()


def test_buildroots_drive_without_an_interface_is_the_devices(kernel: Path) -> None:
    disk = kernel.parent / "rootfs.ext2"
    disk.write_bytes(bytes(8192))
    line = f"{BUILDROOT.format(disk=disk)} -kernel {kernel}"
    io = io_config(parse(line, "-append", "rootwait root=/dev/vda ro"))
    assert [type(device) for device in io.devices.values()] == [Block, Rng]
    io.close()
    alone = io_config(parse(f"-kernel {kernel} -drive file={disk},format=raw,cache=none,aio=native"))
    assert [type(device) for device in alone.devices.values()] == [Block], "and without a -device it is a disk, too"
    alone.close()


def test_rcores_loader_puts_the_kernel_where_the_firmware_jumps_to(kernel: Path) -> None:
    firmware = kernel.parent / "rustsbi.bin"
    firmware.write_bytes(b"\x6f\0\0\0")
    boot = plan_boot(parse(RCORE.format(firmware=firmware, kernel=kernel)))
    assert boot.pc == 0x8000_0000
    assert [s.data for s in boot.segments if s.address == 0x8020_0000] == [kernel.read_bytes()]
    bare = plan_boot(parse(f"-bios none -device loader,file={kernel},addr=0x80000000"))
    assert (bare.pc, bare.segments[0].data) == (0x8000_0000, kernel.read_bytes())


def test_the_memory_that_virtiofs_asks_for_is_there(kernel: Path) -> None:
    socket = kernel.parent / "socket"
    socket.touch()
    config = parse(f"{VIRTIOFS.format(socket=socket)} -kernel {kernel} -name guest")
    assert config.ram == 1 << 30 and [device.driver for device in config.devices] == ["vhost-user-fs-device"]


@pytest.mark.parametrize(("harts", "cpus"), [(4, "0-3"), (1, "0"), (1, "0-0")])
def test_a_numa_node_may_name_all_harts(harts: int, cpus: str, kernel: Path) -> None:
    """As virtme-ng's --numa 1G,cpus=0-3 does."""
    line = f"-smp {harts} -m 1G -object memory-backend-memfd,id=m,size=1G -numa node,memdev=m,cpus={cpus}"
    check(parse(f"{line} -kernel {kernel}"))


def test_global_is_a_property_of_every_device_that_does_not_give_it() -> None:
    line = "-device virtio-rng-device -device virtio-rng-pci,packed=off -global virtio-rng-device.packed=on"
    config = options.parse([*line.split(), "-global", "driver=virtio-rng-pci,property=in_order,value=on"])
    assert [(d.get("packed"), d.get("in_order")) for d in config.devices] == [("on", "on"), ("off", "on")]


HELP = {
    "-machine help": "virt  ",
    "-cpu help": "rv64",
    "-accel help": "tcg",
    "-object help": "memory-backend-memfd",
    "-device help": "virtio-net-device",
    "-device virtio-blk-pci,help": "write-cache",
    "-netdev help": "user",
    "-display help": "none",
    "-version": "version ",
}


@pytest.mark.parametrize("line", HELP)
def test_help_names_what_is_there(line: str) -> None:
    with pytest.raises(Help, match=HELP[line]):
        options.parse(line.split())


def test_another_escape_character() -> None:
    io = io_config(options.parse(["-echr", "0x14"]))
    assert isinstance(io.serial, Stdio)
    io.serial.received(b"a\x01\x14\x14")
    assert io.serial.read(9) == b"a\x01\x14"
    io.close()


MISTAKES = ("-echr 0", "-echr 128", "-echr x", "-mon mode=readline", "-mon chardev=c,mode=control", "-mon chardev=none")


@pytest.mark.parametrize("line", [*MISTAKES, "-accel kvm:xen", "-vga std", "-parallel stdio"])
def test_what_can_not_be_is_one_line(kernel: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=line.split()[0]):
        parse(f"{line} -kernel {kernel}")


def test_the_script_of_qemus_name_is_the_emulator() -> None:
    script = Path(__file__).parent.parent / "scripts/qemu-system-riscv64"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.fixture(scope="module")
def guest() -> Guest:
    return default_guest()


@pytest.mark.boot
def test_linux_as_kunit_starts_it(guest: Guest, tmp_path: Path) -> None:
    assert guest.firmware_dir
    (tmp_path / f"{OPENSBI}fw_dynamic.bin").write_bytes((guest.firmware_dir / "fw_dynamic.bin").read_bytes())
    line = KUNIT.format(kernel=guest.kernel).replace(OPENSBI, f"{tmp_path}/{OPENSBI}")
    append = "console=ttyS0 earlycon panic=-1 reboot=t rdinit=/none root=/none"
    with Console(*line.split(), "-append", append) as console:
        assert console.wait(TIMEOUT) == 0
        assert "OpenSBI" in console.text() and "Kernel panic" in console.text()


def test_the_extra_is_the_command_of_qemus_name() -> None:
    root = Path(__file__).parent.parent
    whole, shim = (
        tomllib.loads((root / name).read_text()) for name in ("pyproject.toml", "scripts/shim/pyproject.toml")
    )
    assert whole["project"]["optional-dependencies"]["qemu"] == [shim["project"]["name"]]
    assert shim["project"]["scripts"] == {"qemu-system-riscv64": whole["project"]["scripts"]["hartbeat"]}
