"""A whole machine as its user sees it: how it ends, what is left of it, and the host's ends of its lines.

The guests are a few instructions each, assembled here; what needs Linux is in test_boot.py.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from console import ROOT, Console, gone, inodes, started

from mem.cachedir import cache_directory
from mem.regions import HOT
from smp.host import default_engine
from smp.hot import HotBlocks

pytestmark = pytest.mark.conformance

COMPILER = os.environ.get("RISCV_CC", "riscv64-linux-gnu-gcc")
FLAGS = (
    *("-march=rv64gc", "-mabi=lp64d", "-mno-relax", "-nostdlib", "-static"),
    *("-Wl,-N", "-Wl,-Ttext=0x80000000", "-Wl,--no-warn-rwx-segments", "-Wl,--build-id=none"),
)

# Macros: `say TEXT` by the UART, `finish WORD` by the test finisher, `only_first` parks all harts but hart 0.
MACROS = """
    .macro say text
    lla a0, 9f
    call print
    j 8f
9:  .asciz "\\text"
    .balign 4
8:
    .endm
    .macro finish word
    li t0, 0x100000
    li t1, \\word
    sw t1, 0(t0)
    .endm
    .macro only_first
    csrr t0, mhartid
    bnez t0, park
    .endm
    .globl _start
_start:
"""
REST = """
park:
    wfi
    j park
print:
    li t0, 0x10000000
1:  lbu t1, 0(a0)
    beqz t1, 3f
2:  lbu t2, 5(t0)
    andi t2, t2, 0x20
    beqz t2, 2b
    sb t1, 0(t0)
    addi a0, a0, 1
    j 1b
3:  ret
"""

POWER_OFF = "only_first; finish 0x5555"
IDLE = 'only_first; say "ready\\n"'
# All harts busy; hart 0 says so first.
BUSY = """
    csrr t0, mhartid
    bnez t0, spin
    say "ready\\n"
spin:
    addi t3, t3, 1
    j spin
"""
# Under the built-in SBI: what a user program reads.
COUNTERS = """
    lla t0, user
    csrw sepc, t0
    lla t0, trap
    csrw stvec, t0
    li t0, 0x100
    csrc sstatus, t0
    sret
user:
    rdcycle t0
    rdtime t0
    rdinstret t0
    ecall
    .balign 4
trap:
    csrr t0, scause
    li t1, 8
    bne t0, t1, failed
    finish 0x5555
failed:
    finish 0x13333
"""
RESET = 'only_first; say "started\\n"; finish 0x7777'
# Numbered lines of 32 bytes, LINES of them, then power-off.
FLOOD = """
    only_first
    li s0, 0
lines:
    li s1, 28
digits:
    srl t1, s0, s1
    andi t1, t1, 15
    addi t1, t1, 0x61
    lla t2, line + 30
    srli t3, s1, 2
    sub t2, t2, t3
    sb t1, 0(t2)
    addi s1, s1, -4
    bgez s1, digits
    lla a0, line
    call print
    addi s0, s0, 1
    li t0, LINES
    bltu s0, t0, lines
    finish 0x5555
    .data
line: .asciz "-----------------------........\\n"
    .text
"""
# Says "ready" and then every byte it gets; Q powers off.
ECHO = """
    only_first
    say "ready\\n"
    li s0, 0x10000000
echo:
    lbu t1, 5(s0)
    andi t2, t1, 1
    beqz t2, echo
    lbu t3, 0(s0)
room:
    lbu t1, 5(s0)
    andi t1, t1, 0x20
    beqz t1, room
    sb t3, 0(s0)
    li t4, 0x51
    bne t3, t4, echo
    finish 0x5555
"""
HTIF = """
    only_first
    lla t0, tohost
    li t1, COMMAND
    sd t1, 0(t0)
    .data
    .balign 64
    .globl tohost
tohost: .dword 0
    .balign 64
    .globl fromhost
fromhost: .dword 0
    .text
"""

Assemble = Callable[[str], str]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Assemble:
    """Assembles a guest; gives the path of its ELF."""
    if shutil.which(COMPILER) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{COMPILER}: not found")
        pytest.skip(f"{COMPILER}: not found")
    folder = tmp_path_factory.mktemp("guests")

    def assemble(text: str) -> str:
        name = folder / f"guest{abs(hash(text)):x}"
        if not name.exists():
            name.with_suffix(".S").write_text(MACROS + text.replace("; ", "\n") + "\nj park\n" + REST)
            subprocess.run([COMPILER, *FLAGS, name.with_suffix(".S"), "-o", name], check=True)
        return str(name)

    return assemble


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """The engine in the cache, so that no time limit below has to allow for making it."""
    subprocess.run([sys.executable, "-c", "from smp import engine; engine.load()"], cwd=Path(__file__).parent.parent)


# How it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harts", [1, 4])
def test_power_off_is_success(guest: Assemble, harts: int) -> None:
    with started("-nographic", "-kernel", guest(POWER_OFF), harts=harts) as console:
        assert console.wait() == 0
        assert console.errors == b""


# An exit status has eight bits, and a failure must not look like success for want of the others.
@pytest.mark.parametrize(("code", "status"), [(1, 1), (42, 42), (255, 255), (0, 1), (256, 1), (0x1234, 0x34)])
def test_a_failure_of_the_test_finisher_is_the_exit_status(guest: Assemble, code: int, status: int) -> None:
    with started("-nographic", "-kernel", guest(f"only_first; finish {code << 16 | 0x3333:#x}"), harts=1) as console:
        assert console.wait() == status


@pytest.mark.parametrize(("command", "status"), [(1, 0), (3, 1), (42 << 1 | 1, 42), (256 << 1 | 1, 1), (2, 1)])
def test_htif_codes_are_exit_statuses(guest: Assemble, command: int, status: int) -> None:
    with started("-nographic", "-kernel", guest(HTIF.replace("COMMAND", str(command))), harts=1) as console:
        assert console.wait() == status


def test_a_kernel_that_leaves_scounteren_alone_has_counters_for_its_programs(guest: Assemble) -> None:
    """OpenSBI hands them over so, and Linux without a PMU driver keeps them so; its vDSO reads the time."""
    with started("-nographic", "-bios", "default", "-kernel", guest(COUNTERS), harts=1) as console:
        assert console.wait() == 0


def test_a_reset_starts_the_machine_again(guest: Assemble) -> None:
    with started("-nographic", "-kernel", guest(RESET)) as console:
        for _ in range(3):
            console.expect("started\r?\n")


def test_no_reboot_ends_at_a_reset(guest: Assemble) -> None:
    with started("-nographic", "-no-reboot", "-kernel", guest(RESET)) as console:
        assert console.wait() == 0
        assert console.text() == "started\n"


# Nothing is left -------------------------------------------------------------------------------------------------

BUSY_OR_IDLE = pytest.mark.parametrize("work", [BUSY, IDLE], ids=["busy", "idle"])


@BUSY_OR_IDLE
@pytest.mark.parametrize("victim", ["io", "hart 0", "hart 3", "optimizer"])
def test_a_killed_process_ends_the_machine(guest: Assemble, victim: str, work: str) -> None:
    with started("-nographic", "-kernel", guest(work), terminal=True) as console:
        console.expect("ready")
        processes = console.processes(harts=4)
        assert not console.terminal_is_restored(), "it should be raw now"
        if victim == "optimizer" and not console.optimizes:
            pytest.skip("the interpreter has no optimizer")
        processes[["io", "hart 0", "hart 1", "hart 2", "hart 3", "optimizer"].index(victim)].kill()
        assert gone([psutil.Process(console.process.pid), *processes]) == []
        assert console.wait() == 1
        assert f"{victim} was killed by SIGKILL" in console.errors.decode()
        assert [p for p in processes if psutil.pid_exists(p.pid)] == [], "not waited for"
        assert console.terminal_is_restored()


@BUSY_OR_IDLE
def test_a_killed_supervisor_takes_the_machine_along(guest: Assemble, work: str) -> None:
    with started("-nographic", "-kernel", guest(work), terminal=True) as console:
        console.expect("ready")
        processes = console.processes(harts=4)
        console.process.kill()
        assert gone(processes) == []
        assert console.wait() == -signal.SIGKILL
        assert console.terminal_is_restored()


@BUSY_OR_IDLE
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_ends_cleanly(guest: Assemble, work: str, number: signal.Signals) -> None:
    with started("-nographic", "-kernel", guest(work), terminal=True) as console:
        console.expect("ready")
        processes = console.processes(harts=4)
        console.process.send_signal(number)
        assert gone([psutil.Process(console.process.pid), *processes]) == []
        assert console.wait() == 128 + number
        assert b"Traceback" not in console.errors
        assert console.terminal_is_restored()


def test_a_hart_that_gets_no_core_for_a_while_is_waited_for(guest: Assemble) -> None:
    with started("-nographic", "-kernel", guest(BUSY)) as console:
        console.expect("ready")
        hart = console.processes(harts=4)[2]
        hart.suspend()
        console.process.terminate()
        time.sleep(2)
        hart.resume()
        assert console.wait() == 128 + signal.SIGTERM
        assert console.errors == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_machine_starts_ends_it(guest: Assemble, number: signal.Signals) -> None:
    """At any moment of the start, which takes some 300 ms: killed by the signal, or an end with 128 + n."""
    for delay in range(0, 800, 50):
        with started("-nographic", "-kernel", guest(BUSY)) as console:
            time.sleep(delay / 1000)
            console.process.send_signal(number)
            status = console.wait()
            # While Python starts and imports, its own handler of SIGINT is in force.
            assert b"in run_machine" not in console.errors, console.errors.decode()
            ends = status in (-number, 128 + number) or b"KeyboardInterrupt" in console.errors
            assert ends, f"status {status} after {delay} ms"


def test_shared_memory_has_no_name(guest: Assemble) -> None:
    """What has no name can't be left behind."""
    with started("-nographic", "-kernel", guest(IDLE)) as console:
        console.expect("ready")
        for process in (console.process, *console.processes(harts=4)):
            assert "/dev/shm/" not in Path(f"/proc/{process.pid}/maps").read_text()
            assert not [name for name in inodes(process.pid) if "/dev/shm/" in name]


# Engines -----------------------------------------------------------------------------------------------------------


def loops_of(supervisor: int) -> int:
    """How many loops the optimizer has installed."""
    with open(f"/proc/{supervisor}/mem", "rb") as memory:
        memory.seek(HOT + HotBlocks.offset("loops"))
        return int.from_bytes(memory.read(4), "little")


def test_a_busy_loop_is_optimized_and_the_statistics_say_so(guest: Assemble) -> None:
    with started("-nographic", "--stats", "-kernel", guest(BUSY), harts=2) as console:
        if not console.optimizes:
            pytest.skip("the interpreter has no optimizer")
        console.expect("ready")
        deadline = time.monotonic() + 60
        while not loops_of(console.process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        console.process.terminate()
        assert console.wait() == 128 + signal.SIGTERM
    found = re.search(r"(\d+) loops optimized in (\d+\.\d) ms", console.errors.decode())
    assert found and int(found[1]) >= 1 and float(found[2]) > 0


@pytest.mark.parametrize("engine", ["default", "interp", "jit"])
def test_every_block_can_be_logged(guest: Assemble, engine: str) -> None:
    """-d exec has everything interpreted, whatever the engine; so the interpreter is its default."""
    if engine == "jit" and default_engine() != "jit":
        pytest.skip("this host can't run the translator")
    asked = [] if engine == "default" else ["--engine", engine]
    elf = guest("only_first; li t1, 5\nagain:\naddi t1, t1, -1; bnez t1, again; finish 0x5555")
    options = ["-m", "64M", "-bios", "none", "-nographic", "-d", "exec", "--stats", *asked]
    with Console(*options, "-kernel", elf) as console:
        assert console.wait() == 0
    text = console.errors.decode()
    runs = Counter(re.findall(r"Trace 0: \[([0-9a-f]{16})/M\]", text))
    assert 4 in runs.values()  # the first of five rounds belongs to the first block
    assert f"engine {asked[-1] if asked else 'interp'}\n" in text


# The keys of mon:stdio --------------------------------------------------------------------------------------------


def test_escape_x_quits_and_escape_h_helps(guest: Assemble) -> None:
    with started("-nographic", "-kernel", guest(BUSY), terminal=True) as console:
        console.expect("ready")
        console.send("\x01h")
        console.expect("C-a x +exit")
        processes = console.processes(harts=4)
        console.send("\x01x")
        assert gone(processes) == []
        assert console.wait() == 0
        assert console.terminal_is_restored()


def test_control_c_is_the_guests_and_escape_escape_is_one(guest: Assemble) -> None:
    with started("-nographic", "-kernel", guest(ECHO), terminal=True) as console:
        console.expect("ready")
        console.send("a\x03b\x01\x01c")
        console.expect("a\x03b\x01c")
        console.send("Q")
        assert console.wait() == 0


# Lines -----------------------------------------------------------------------------------------------------------


def flood(lines: int) -> bytes:
    names = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    return b"".join(b"-" * 23 + f"{n:08x}".translate(names).encode() + b"\n" for n in range(lines))


def flooding(guest: Assemble, lines: int) -> str:
    return guest(FLOOD.replace("LINES", str(lines)))


@pytest.mark.parametrize("lines", [10, 20_000])
def test_all_output_arrives_in_a_file(guest: Assemble, tmp_path: Path, lines: int) -> None:
    path = tmp_path / "log"
    with started("-display", "none", "-serial", f"file:{path}", "-kernel", flooding(guest, lines)) as console:
        assert console.wait() == 0
    assert path.read_bytes() == flood(lines)


def test_output_waits_for_a_slow_reader(guest: Assemble) -> None:
    """More than pipe and buffers hold, and the guest powers off while most of it is still to be read."""
    with started("-nographic", "-kernel", flooding(guest, 10_000)) as console:
        time.sleep(1.5)
        while len(console.output) < 250_000:
            assert console.collect(0.1), "ended"
            time.sleep(0.01)
        time.sleep(2)
        assert console.wait() == 0
        assert console.output == flood(10_000)


def test_last_words_wait_for_a_reader_that_pauses(guest: Assemble) -> None:
    """All of it fits the buffers, so the guest is done long before the reader begins."""
    with started("-nographic", "-kernel", flooding(guest, 3000)) as console:
        time.sleep(4)
        assert console.wait() == 0
        assert console.output == flood(3000)


@pytest.mark.parametrize("how", ["\x01x", signal.SIGTERM])
def test_a_flood_that_nobody_reads_does_not_keep_the_machine(guest: Assemble, how: str | signal.Signals) -> None:
    with started("-nographic", "-kernel", flooding(guest, 100_000)) as console:
        time.sleep(2)
        processes = console.processes(harts=4)
        if isinstance(how, str):
            os.write(console.writer, how.encode())
        else:
            console.process.send_signal(how)
        assert gone(processes) == []
        assert console.wait() == (0 if isinstance(how, str) else 128 + how)


def test_a_reader_that_goes_away_does_not_keep_the_guest(guest: Assemble) -> None:
    with started("-nographic", "-kernel", flooding(guest, 20_000)) as console:
        console.expect("-")
        os.close(console.reader)
        console.open = False
        assert console.wait() == 0
        console.reader = -1


def test_piped_input_all_arrives_and_its_end_is_no_end_of_the_machine(guest: Assemble) -> None:
    data = bytes(97 + n % 26 for n in range(10_000))
    with started("-display", "none", "-serial", "stdio", "-kernel", guest(ECHO)) as console:
        console.send(data)
        console.close_input()
        console.expect("ready\r?\n")
        while len(console.output) < 6 + len(data):
            assert console.collect(5), "ended"
        assert console.output[-len(data) :] == data
        time.sleep(0.3)
        assert console.process.poll() is None
        console.process.terminate()
        assert console.wait() == 128 + signal.SIGTERM


def test_input_that_is_pasted_before_the_guest_reads_arrives(guest: Assemble) -> None:
    data = bytes(97 + n % 26 for n in range(10_000)) + b"Q"
    with started("-nographic", "-kernel", guest(ECHO), terminal=True) as console:
        console.expect("ready\r?\n")
        console.send(data)
        assert console.wait() == 0
        assert console.output[console.seen :] == data


def test_standard_input_may_be_closed(guest: Assemble) -> None:
    command = [sys.executable, "-m", "smp", "-bios", "none", "-nographic", "-kernel", guest(POWER_OFF)]
    shell = f"exec {' '.join(command)} <&-"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=240, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stderr) == (0, b"")


def read_until(client: socket.socket, text: bytes) -> bool:
    client.settimeout(60)
    data = b""
    while text not in data and (more := client.recv(100)):
        data += more
    return text in data


def test_a_unix_socket_carries_both_ways_and_is_gone_afterwards(guest: Assemble, tmp_path: Path) -> None:
    path = tmp_path / "line"
    options = ["-display", "none", "-serial", f"unix:{path},server=on,wait=off", "-kernel", guest(ECHO)]
    with started(*options) as console:
        connect = wait_for(path)
        for text in (b"first", b"second"):  # the next client when one has gone
            with connect() as client:
                client.sendall(text)
                assert read_until(client, text)
        with connect() as client:
            client.sendall(b"Q")
            assert console.wait() == 0
    assert not path.exists()


def wait_for(path: Path) -> Callable[[], socket.socket]:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        return client

    return connect


def test_a_socket_and_its_client_are_still_there_after_a_reset(guest: Assemble, tmp_path: Path) -> None:
    path = tmp_path / "line"
    with started("-display", "none", "-serial", f"unix:{path},server=on,wait=off", "-kernel", guest(RESET)):
        connect = wait_for(path)
        for _ in range(2):
            with connect() as client:
                for _ in range(3):
                    assert read_until(client, b"started")
            assert path.exists()


def test_a_pty_carries_both_ways(guest: Assemble) -> None:
    with started("-display", "none", "-serial", "pty", "-kernel", guest(ECHO)) as console:
        while not (match := re.search(rb"redirected to (\S+)", console.errors)):
            assert console.collect(10)
        fd = os.open(match[1].decode(), os.O_RDWR | os.O_NOCTTY)
        os.write(fd, b"hello, world")
        got = b""
        while not got.endswith(b"hello, world"):
            got += os.read(fd, 100)
        os.write(fd, b"Q")
        assert console.wait() == 0
        os.close(fd)


def test_a_null_line_takes_everything(guest: Assemble) -> None:
    with started("-display", "none", "-serial", "null", "-kernel", flooding(guest, 5000)) as console:
        assert console.wait() == 0
        assert console.output == b""


# Costs -----------------------------------------------------------------------------------------------------------


def test_a_warm_start_compiles_nothing(guest: Assemble) -> None:
    """Neither the engine nor Python's sources; `scripts/bench` tells how long it takes."""

    def cached() -> dict[Path, int]:
        of_ours = cache_directory() / "bytecode" / ROOT.relative_to("/")
        found = [*of_ours.rglob("*.pyc"), *ROOT.glob("*/__pycache__/*.pyc")]
        return {path: path.stat().st_mtime_ns for path in found}

    for _ in range(2):
        before = cached()
        with started("-nographic", "-kernel", guest(POWER_OFF)) as console:
            assert console.wait() == 0
    assert before and cached() == before
    assert b"compiling" not in console.errors


def test_idle_harts_sleep(guest: Assemble) -> None:
    with started("-nographic", "-kernel", guest(IDLE)) as console:
        console.expect("ready")
        processes = [psutil.Process(console.process.pid), *console.processes(harts=4)]
        deadline, cost = time.monotonic() + 60, 1.0
        while cost >= 0.1:  # at first some still do what belongs to the start
            assert time.monotonic() < deadline, cost
            before = sum(sum(p.cpu_times()[:2]) for p in processes)
            time.sleep(2)
            cost = sum(sum(p.cpu_times()[:2]) for p in processes) - before


def test_a_process_has_little_memory_of_its_own(guest: Assemble) -> None:
    with started("-nographic", "-kernel", guest(IDLE)) as console:
        console.expect("ready")
        for process in console.processes(harts=4):
            assert process.memory_full_info().uss < 40 << 20


@pytest.mark.slow
def test_a_machine_of_128_harts_starts_and_ends(guest: Assemble) -> None:
    with started("-nographic", "-kernel", guest(IDLE), harts=128) as console:
        console.expect("ready")
        processes = console.processes(harts=128)
        console.process.terminate()
        assert gone(processes) == []
        assert console.wait() == 128 + signal.SIGTERM
