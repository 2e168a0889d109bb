"""A user's mistake is one line on stderr that names the value, and status 2; nothing is started."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from smp import cli, devicetree

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with some files, which is the current one; `smp.machine` only plans the boot."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernel").write_bytes(b"\x6f\0\0\0")
    (tmp_path / "initrd").write_bytes(bytes(20 << 20))
    (tmp_path / "disk.img").write_bytes(bytes(512))
    (tmp_path / "other.img").write_bytes(bytes(512))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "x86").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0" + bytes(64))
    (tmp_path / "short").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9))
    (tmp_path / "broken.toml").write_text("smp = \n")
    (tmp_path / "key.toml").write_text('kernal = "kernel"\n')
    (tmp_path / "flag.toml").write_text('snapshot = "yes"\n')
    (tmp_path / "kind.toml").write_text("smp = [1, 2]\n")
    (tmp_path / "date.toml").write_text("m = 2024-01-01\n")
    (tmp_path / "nul.toml").write_text('append = "a\\u0000b"\n')
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()
    machine = ModuleType("smp.machine")
    machine.run_machine = lambda config: devicetree.plan_boot(config) and 0
    monkeypatch.setitem(sys.modules, "smp.machine", machine)
    return tmp_path


CONSOLE = " -device virtio-serial-device -device virtconsole,chardev=c"

# A command line, and words that the message must have: the value, and what to do instead.
BAD = [
    ("", "nothing to start -kernel"),
    ("-bogus", "-bogus unknown"),
    ("--kernal kernel", "--kernal kernel"),
    ("-kernel=kernel", "-kernel=kernel -kernel VALUE"),
    ("--snapshot=on", "--snapshot=on no value"),
    ("kernel", "'kernel' -drive"),
    ("-", "'-'"),
    ("--", "'--'"),
    ("-kernel", "-kernel FILE"),
    ("-kernel -smp 2", "-kernel FILE"),
    ("-M q35 -kernel kernel", "q35 virt"),
    ("-M virt,aclint=on -kernel kernel", "aclint=on off"),
    ("-M virt,nvdimm=on -kernel kernel", "nvdimm known"),
    ("-M virt,memory-backend=m -kernel kernel", "memory-backend=m memory-backend-memfd"),
    ("-kernel kernel -s", "-s debugger"),
    ("-kernel kernel -qmp-pretty stdio", "-qmp-pretty leave it out"),
    ("-kernel kernel -hda disk", "-hda -drive"),
    ("-drive if=pflash,unit=0,format=raw,file=disk", "if=pflash flash -bios"),
    ("-machine virt,pflash0=code -kernel kernel", "pflash0=code flash -bios"),
    ("-kernel kernel -name a,process=b", "process known"),
    ("-kernel kernel -rtc base=localtime", "base=localtime base=utc"),
    ("-kernel kernel -bios fw_none.bin", "fw_none.bin opensbi -bios default"),
    ("-kernel kernel -global virtio-mmio.force-legacy=true", "force-legacy=true false"),
    ("-kernel kernel -global virtio-mmio.legacy=true", "legacy known force-legacy"),
    ("-kernel kernel -global virtio-fish-pci.a=b", "virtio-fish-pci no such device"),
    ("-kernel kernel -global a=b", "a=b DRIVER.PROPERTY"),
    ("-kernel kernel -global virtio-rng-pci.a=b -device virtio-rng-device", "unknown property 'a'"),
    ("-kernel kernel -numa node -numa node", "-numa one node"),
    ("-kernel kernel -smp 4 -numa node,cpus=0-1 -numa node,cpus=2-3", "cpus=2-3 one node"),
    ("-kernel kernel -smp 4 -numa node,cpus=0-2", "cpus=0-2 cpus=0-3"),
    ("-kernel kernel -numa node,cpus=a", "cpus=a 0-3"),
    ("-kernel kernel -numa dist,src=0,dst=1,val=20", "unknown property src"),
    ("-kernel kernel -object memory-backend-memfd,id=m,size=1G", "size -m 128M"),
    ("-kernel kernel -object memory-backend-file,id=m,size=128M", "memory-backend-file memory-backend-memfd"),
    ("-kernel kernel -object memory-backend-ram,id=m", "needs size=SIZE"),
    ("-kernel kernel -device loader,addr=4", "loader file=FILE"),
    ("-kernel kernel -device loader,file=nowhere,addr=0x80200000", "nowhere no such file"),
    ("-kernel kernel -device loader,file=kernel,addr=fish", "fish 0x80200000"),
    ("-kernel kernel -device loader,file=kernel", "kernel addr=ADDRESS"),
    ("-kernel kernel -device loader,file=kernel,addr=0x80200000", "overlaps another address"),
    ("-kernel kernel -device loader,file=kernel,addr=0x1000", "0x1000 RAM"),
    ("-M virt,dumpdtb=nowhere/a.dtb", "nowhere/a.dtb"),
    ("-M virt,dumpdtb=folder", "folder directory"),
    ("-M virt,dumpdtb=", "dumpdtb"),
    ("-M virt,dtb-randomness=maybe", "dtb-randomness=maybe off"),
    ("-cpu rv32 -kernel kernel", "rv32 rv64"),
    ("-cpu rv64,zaca=on -kernel kernel", "zaca zacas"),
    ("-cpu rv64,zacas=maybe -kernel kernel", "zacas=maybe zacas=off"),
    ("-cpu rv64,zacas -kernel kernel", "zacas zacas=on"),
    ("-cpu rv64,v=on -kernel kernel", "v=on off"),
    ("-cpu rv64,i=off -kernel kernel", "i=off"),
    ("-cpu rv64,sv39=off -kernel kernel", "sv39=off"),
    ("-cpu rv64,zca=off -kernel kernel", "zca"),
    ("-cpu rv64,c=off,zcb=on -kernel kernel", "zcb=on c=on"),
    ("-smp 0 -kernel kernel", "0 1 128"),
    ("-smp 129 -kernel kernel", "129 128"),
    ("-smp -1 -kernel kernel", "-1 number"),
    ("-smp two -kernel kernel", "two number"),
    ("-smp 99999999999999999999 -kernel kernel", "99999999999999999999"),
    ("-smp 4,cores=3 -kernel kernel", "4,cores=3 equal"),
    ("-smp cpus=4,sockets=2,cores=2,threads=2 -kernel kernel", "sockets 8 4"),
    ("-smp 4,cores=0 -kernel kernel", "cores=0"),
    ("-smp 2,maxcpus=4 -kernel kernel", "maxcpus"),
    ("-smp 4,core=4 -kernel kernel", "core cores"),
    ("-smp 4,cores=2,cores=2 -kernel kernel", "cores twice"),
    ("-m 64K -kernel kernel", "64K 16M"),
    ("-m 0 -kernel kernel", "16M"),
    ("-m 2T -kernel kernel", "2T 1T"),
    ("-m lots -kernel kernel", "lots 512M"),
    ("-m 16777217b -kernel kernel", "16777217b 4096"),
    ("-m 1G,slots=2 -kernel kernel", "slots"),
    ("-kernel nowhere", "nowhere no such file"),
    ("-kernel kernl", "kernl kernel"),
    ("-kernel nowhere/kernel", "nowhere/kernel directory"),
    ("-kernel folder", "folder directory"),
    ("-kernel empty", "empty"),
    ("-kernel x86", "x86-64 riscv64"),
    ("-kernel short", "short truncated"),
    ("-kernel " + "k" * 300, "kkk"),
    ("-initrd initrd", "initrd -kernel"),
    ("-append quiet", "quiet -kernel"),
    ("-kernel kernel -initrd nowhere", "nowhere"),
    ("-kernel kernel -initrd initrd -m 16M", "16M 26M"),
    ("-kernel kernel -bios nowhere", "nowhere"),
    ("-kernel kernel -bios x86", "-bios x86 riscv64"),
    ("-bios none", "-kernel"),
    ("-kernel kernel -dtb kernel", "-dtb kernel dtc"),
    ("-kernel kernel -drive if=virtio", "if=virtio file=FILE"),
    ("-kernel kernel -drive file=nowhere.img", "nowhere.img"),
    ("-kernel kernel -drive file=dsk.img", "dsk.img disk.img"),
    ("-kernel kernel -drive file=folder", "folder directory"),
    ("-kernel kernel -drive file=disk.img,format=qcow3", "qcow3 qcow2"),
    ("-kernel kernel -drive file=disk.img,if=ide", "if=ide virtio"),
    ("-kernel kernel -drive file=disk.img,cache=directsync", "cache=directsync writeback"),
    ("-kernel kernel -drive file=disk.img,readonly=yes", "readonly=yes readonly=on"),
    ("-kernel kernel -drive file=disk.img,if=none", "id"),
    ("-kernel kernel -drive file=disk.img,if=none,id=d", "d -device"),
    ("-kernel kernel -drive file=disk.img,id=d -drive file=other.img,id=d", "id=d 2"),
    ("-kernel kernel -drive file=disk.img -drive file=disk.img", "disk.img 2"),
    ("-kernel kernel -drive file=disk.img,if=virtio,id=d -device virtio-blk-device,drive=d", "drive=d if=none"),
    ("-kernel kernel -device virtio-blk-device", "drive=ID"),
    ("-kernel kernel -device virtio-blk-device,drive=d", "drive=d -drive"),
    ("-kernel kernel -device virtio-blk-device,drive=d,num-queues=0", "num-queues=0 32"),
    ("-kernel kernel -device virtio-blk-device,drive=d,num-queues=x", "num-queues x"),
    ("-kernel kernel -device virtio-blk-device,drive=d,serial=123456789012345678901", "serial 20"),
    ("-kernel kernel -device virtio-blk-pci,drive=d", "drive=d no such drive"),
    ("-kernel kernel -device virtio-blk-ccw,drive=d", "virtio-blk-ccw virtio-blk-device"),
    ("-kernel kernel -device virtio-rng-pci,disable-modern=on", "disable-modern=on off"),
    ("-kernel kernel -device virtio-rng-pci,disable-legacy=maybe", "disable-legacy=maybe disable-legacy=auto"),
    ("-kernel kernel -device virtio-rng-device,addr=4", "addr known"),
    ("-kernel kernel -device virtio-rng-device,bus=virtio-mmio-bus.32", "bus=virtio-mmio-bus.32 .31"),
    ("-kernel kernel -device virtio-rng-device,iommu_platform=on", "iommu_platform=on off"),
    ("-kernel kernel -device virtio-rng-device,iothread=t", "iothread=t -object"),
    ("-kernel kernel -object iothread", "id=NAME"),
    ("-kernel kernel -object rng-builtin", "id=NAME"),
    ("-kernel kernel -object rng-random,id=r,filename=/dev/zero", "/dev/zero /dev/urandom"),
    ("-kernel kernel -object rng-random,id=r -device virtio-rng-pci,rng=s", "rng=s -object"),
    ("-kernel kernel -object rng-random,id=r -object iothread,id=r", "id=r 2"),
    ("-kernel kernel -device virtio-blk-device,drive=d,queue-size=100", "queue-size=100 queue-size=128"),
    ("-kernel kernel -device virtio-blk-device,drive=d,write-cache=maybe", "write-cache=maybe write-cache=off"),
    ("-kernel kernel -device virtio-blk-device,drive=d,werror=stop", "werror=stop report"),
    ("-kernel kernel -object iothread,id=t,poll-max=1", "poll-max poll-max-ns"),
    ("-kernel kernel -object iothread,id=t,poll-max-ns=1us", "poll-max-ns 1us number"),
    ("-kernel kernel -object iothread,id=t -object iothread,id=t", "id=t 2"),
    ("-kernel kernel -M virt,iothreads=8", "8 7"),
    ("-kernel kernel -M virt,iothreads=few", "iothreads few number"),
    ("-kernel kernel -device virtio-rng-device,event_idx=1", "event_idx=1 event_idx=off"),
    ("-kernel kernel -device virtconsole,event_idx=on", "event_idx known"),
    ("-kernel kernel -device virtio-rng-device,max-bytes=1", "max-bytes known"),
    ("-kernel kernel -device virtio-net-device", "virtio-net-device netdev=ID"),
    ("-kernel kernel -device virtio-net-device,netdev=n", "netdev=n -netdev"),
    ("-kernel kernel -netdev user,id=n", "id=n -device"),
    ("-kernel kernel -netdev user", "id=NAME"),
    ("-kernel kernel -netdev slirp,id=n", "slirp user"),
    ("-kernel kernel -netdev user,id=n,guestfwd=x", "guestfwd 10.0.2.2"),
    ("-kernel kernel -netdev user,id=n,tftp=/x", "tftp host"),
    ("-kernel kernel -netdev user,id=n,restricted=on", "restricted restrict"),
    ("-kernel kernel -netdev user,id=n,ipv6=maybe", "ipv6=maybe off"),
    ("-kernel kernel -netdev hubport,id=n", "hubid=N"),
    ("-kernel kernel -netdev hubport,id=n,hubid=0,netdev=m", "netdev=m -netdev"),
    ("-kernel kernel -netdev stream,id=n,addr.type=unix,addr.path=s -netdev stream,id=n,addr.type=unix", "id=n 2"),
    (
        "-kernel kernel -netdev stream,id=n" + 2 * " -device virtio-net-device,netdev=n",
        "netdev=n 2",
    ),
    ("-kernel kernel -nic stream,model=e1000", "e1000 virtio"),
    ("-kernel kernel -nic user,mac=1:2:3", "mac=1:2:3 52:54:00:12:34:56"),
    ("-kernel kernel -nic user,mac=01:00:00:00:00:00", "mac=01:00:00:00:00:00 even"),
    ("-kernel kernel -net user", "user -nic"),
    ("-kernel kernel -netdev stream,id=n -device virtio-net,netdev=n,csum=maybe", "csum=maybe off"),
    ("-kernel kernel -netdev stream,id=n -device virtio-net,netdev=n,rx_queue_size=100", "100 256"),
    ("-kernel kernel -netdev stream,id=n -device virtio-net,netdev=n,host_mtu=10", "host_mtu=10 68"),
    ("-kernel kernel -netdev stream,id=n -device virtio-net,netdev=n,rss=on", "rss=on off"),
    ("-kernel kernel -object filter-dump,id=f,file=a.pcap", "netdev=ID"),
    ("-kernel kernel -object filter-dump,id=f,file=a.pcap,netdev=n", "netdev=n -netdev"),
    ("-kernel kernel -object cryptodev,id=f", "cryptodev filter-dump"),
    ("-kernel kernel -object filter-dump,id=f,netdev=n,file=a,maxlen=0", "maxlen=0"),
    ("-kernel kernel -nic stream,id=n" + 2 * " -object filter-dump,id=f,netdev=n,file=a", "id=f 2"),
    ("-kernel kernel -nic stream,id=n -object filter-dump,id=f,netdev=n,file=folder", "folder directory"),
    ("-kernel kernel" + 33 * " -nic stream", "33 32"),
    ("-kernel kernel -device virtconsole,chardev=c", "virtconsole virtio-serial-device"),
    ("-kernel kernel -device virtio-serial-device -device virtconsole,chardev=c", "chardev=c -chardev"),
    ("-kernel kernel -share nowhere", "-share nowhere"),
    ("-kernel kernel -share foldr", "foldr folder"),
    ("-kernel kernel -share kernel", "kernel folder -drive"),
    ("-kernel kernel -share folder -share folder", "share 2"),
    ("-kernel kernel -virtfs local,path=folder,security_model=none", "mount_tag=NAME"),
    ("-kernel kernel -virtfs local,path=folder,mount_tag=t", "security_model mapped-xattr"),
    ("-kernel kernel -virtfs local,mount_tag=t,security_model=none", "path=FOLDER"),
    ("-kernel kernel -virtfs proxy,path=folder,mount_tag=t", "proxy local"),
    ("-kernel kernel -virtfs local,path=folder,mount_tag=t,security_model=mapped-file", "mapped-file mapped-xattr"),
    ("-kernel kernel -virtfs local,path=folder,mount_tag=t,security_model=mappd", "mappd mapped"),
    ("-kernel kernel -virtfs local,path=folder,mount_tag=t,security_model=none,multidevs=yes", "yes remap"),
    ("-kernel kernel -virtfs local,path=folder,mount_tag=t,security_model=none,writeout=immediate", "writeout known"),
    ("-kernel kernel -virtfs local,path=folder,security_model=none,mount_tag=" + "t" * 32, "ttt 31"),
    ("-kernel kernel -virtfs local,path=folder,mount_tag=t,security_model=mapped,dmode=750", "dmode=750 octal 0640"),
    ("-kernel kernel -virtfs local,path=folder,mount_tag=t,security_model=none,fmode=0640", "fmode=0640 mapped-xattr"),
    ("-kernel kernel -fsdev local,path=folder,security_model=none", "id=NAME"),
    ("-kernel kernel -fsdev local,path=folder,security_model=none,id=f", "f -device"),
    ("-kernel kernel -device virtio-9p-device", "fsdev=ID"),
    ("-kernel kernel -device virtio-9p-device,fsdev=f,mount_tag=t", "fsdev=f -fsdev"),
    (
        "-kernel kernel -fsdev local,path=folder,security_model=none,id=f -device virtio-9p-pci,fsdev=f",
        "mount_tag=NAME",
    ),
    ("-kernel kernel -chardev pty,id=c", "c virtconsole"),
    ("-kernel kernel -chardev pty", "id=NAME"),
    ("-kernel kernel -chardev fd,id=c", "fd number"),
    ("-kernel kernel -serial fd:one", "one number"),
    ("-kernel kernel -serial fd:987", "987 987>FILE"),
    ("-kernel kernel -chardev file,id=c", "path=FILE"),
    ("-kernel kernel -chardev tcp,id=c", "tcp stdio"),
    (
        "-kernel kernel -nographic -device virtio-serial-device -chardev stdio,id=c -device virtconsole,chardev=c",
        "stdio -serial none",
    ),
    ("-kernel kernel" + 33 * " -device virtio-rng-device", "33 32"),
    ("-kernel kernel -display gtk", "gtk none"),
    ("-kernel kernel -monitor stdio", "stdio none"),
    ("-kernel kernel -serial tcp:1234", "tcp:1234 tcp:HOST:PORT"),
    ("-kernel kernel -serial udp:1234", "udp:1234 unix"),
    ("-kernel kernel -serial chardev:c", "chardev:c no such chardev"),
    ("-kernel kernel -serial chardev:c -chardev null,id=c" + CONSOLE, "chardev=c 2 times"),
    ("-kernel kernel -serial pipe:nowhere", "nowhere mkfifo"),
    ("-kernel kernel -chardev ringbuf,id=c", "ringbuf monitor file"),
    ("-kernel kernel -chardev null,mux=on,id=c", "mux=on leave"),
    ("-kernel kernel -chardev stdio,signal=no,id=c", "signal=no signal=on"),
    ("-kernel kernel -chardev socket,id=c", "path=FILE port=N"),
    ("-kernel kernel -chardev socket,path=s,port=1,id=c", "port TCP"),
    ("-kernel kernel -chardev socket,port=1,telnet=on,id=c", "telnet=off"),
    ("-kernel kernel -chardev socket,port=1,server=on,reconnect=1,id=c", "reconnect server=off"),
    ("-kernel kernel -chardev socket,port=1,reconnect=x,id=c", "reconnect x number"),
    ("-kernel kernel -chardev file,path=f,input-path=nowhere,id=c" + CONSOLE, "nowhere no such file"),
    ("-kernel kernel -serial file:", "file"),
    ("-kernel kernel -serial file:nowhere/log", "nowhere"),
    ("-kernel kernel -serial unix:s,wait=on", "wait server=on"),
    ("-kernel kernel -serial unix:kernel,server=on", "kernel socket"),
    ("-kernel kernel -serial unix:" + "s" * 120 + ",server=on", "107"),
    ("-kernel kernel -serial null -serial null", "one UART"),
    ("-kernel kernel -d everything", "everything help"),
    ("-kernel kernel -d int,,exec", "''"),
    ("-kernel kernel -d int -D nowhere/log", "nowhere/log"),
    ("-kernel kernel -D log", "log -d"),
    ("-kernel kernel -accel xen", "xen tcg"),
    ("-kernel kernel -accel tcg,thread=single", "single multi"),
    ("-kernel kernel --engine check -smp 2", "check smp"),
    ("-kernel kernel -accel tcg,tb-size=64K", "64K 128K"),
    ("-kernel kernel -accel tcg,tb-size=2G", "2G 1G"),
    ("-kernel kernel -accel tcg,tb-size=0", "128K"),
    ("-kernel kernel -accel tcg,tb-size=131073b", "131073b 4096"),
    ("-kernel kernel -accel tcg,tb-size=many", "many size"),
    ("-kernel kernel --engine fast", "fast interp"),
    ("--config nowhere.toml", "nowhere.toml"),
    ("--config folder", "folder directory"),
    ("--config broken.toml", "broken.toml line 1"),
    ("--config key.toml", "key.toml kernal kernel"),
    ("--config flag.toml", "flag.toml snapshot yes true"),
    ("--config kind.toml", "kind.toml smp"),
    ("--config date.toml", "date.toml m"),
    ("--config nul.toml", "NUL"),
    ("--config binary.toml", "binary.toml UTF-8"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[line[:60] for line, _ in BAD])
def test_one_line_names_the_value_and_the_way_out(place, capsys, line, words):
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hartbeat: ") and err.count("\n") == 1 and err.endswith("\n")
    for word in words.split():
        assert word in err


def test_control_characters_of_a_name_are_shown(place, capsys):
    assert cli.main(["-kernel", "a\n\x1b[2Jb"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and r"a\n\x1b[2Jb" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_named(place, capsys):
    (place / "kernel").chmod(0)
    assert cli.main(["-kernel", "kernel"]) == 2
    assert "kernel: may not be read" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_drive_that_may_not_be_written_needs_readonly(place, capsys):
    (place / "disk.img").chmod(0o400)
    assert cli.main(["-kernel", "kernel", "-drive", "file=disk.img"]) == 2
    assert "readonly=on" in capsys.readouterr().err
    assert cli.main(["-kernel", "kernel", "-drive", "file=disk.img,readonly=on"]) == 0


def test_what_is_right_is_started(place):
    line = "-kernel kernel -drive file=disk.img -drive file=disk.img,if=none,id=d,snapshot=on"
    assert cli.main([*line.split(), "-device", "virtio-blk-device,drive=d"]) == 0


@pytest.mark.parametrize("arguments", [["-smp", "0"], ["-kernel", "/nowhere"], ["--config", "/nowhere"]])
def test_the_command_ends_with_status_2(arguments):
    run = subprocess.run(
        [sys.executable, "-m", "smp", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("hartbeat: ") and run.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["-h", "-version"])
def test_help_that_nobody_reads_ends_quietly(option: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "smp", option], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 128 + 13 and done.stderr == b""


@pytest.mark.parametrize(
    "line",
    [
        *(
            "-S",
            "-qmp file:x",
            "-qmp null",
            "-qmp udp:x",
            "-qmp chardev:none",
            "-qmp unix:",
            "-qmp unix:disk.img,server=on",
        ),
        *("-qmp stdio -serial stdio", "-mon chardev=a,mode=control", "-mon chardev=a,mode=both"),
    ],
)
def test_monitors_that_can_not_be(place, capsys, line: str) -> None:
    assert cli.main(["-kernel", "kernel", *line.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hartbeat: -") and error.count("\n") == 1
