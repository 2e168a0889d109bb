"""The benchmark: what it makes of output and numbers, that it fails loudly, its programs compute what they say.

No guest runs here; a fake machine is a shell script that prints what a guest would.
"""

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from benchlib import build, devices, machine, qemu, report  # noqa: E402
from benchlib.machine import Guest, Kind, Result, RunError  # noqa: E402
from benchlib.results import NATIVE, OURS, QEMU, Results, geomean  # noqa: E402
from benchlib.rows import DEVICES, BenchError, Row, all_rows, select  # noqa: E402

from smp import guest  # noqa: E402

ROWS = [Row("sort", "a"), Row("cas-2", "b"), Row("boot-1", "c", guest=False)]


# ---- rows


def test_threaded_rows_go_up_to_the_number_of_harts() -> None:
    names = [row.name for row in all_rows(4)]
    assert [name for name in names if name.startswith("cas")] == ["cas-1", "cas-2", "cas-4"]
    assert [name for name in names if name.startswith("boot")] == ["boot-1", "boot-4"]
    assert [row.name for row in all_rows(1) if "-" in row.name] == ["work-1", "amoadd-1", "cas-1", "boot-1"]
    assert len(names) == len(set(names))


def test_only_takes_rows_and_families() -> None:
    assert [row.name for row in select(all_rows(2), ["cas", "sort", "work-2"])] == ["sort", "work-2", "cas-1", "cas-2"]
    assert select(all_rows(4), []) == all_rows(4)
    assert [row.name for row in select(DEVICES, ["rand", "rr"])] == ["rand-1", "rand-8", "rr"]
    with pytest.raises(BenchError, match=r"--only cass: no such row; rows are mix, sort"):
        select(all_rows(4), ["cass"])


# ---- comparing


def results(ours: list[float | None], other: list[float | None]) -> Results:
    made = Results()
    for seconds in ours:
        made.add(OURS, "sort", seconds)
    for seconds in other:
        made.add(QEMU, "sort", seconds)
    return made


def test_the_ratio_is_the_median_of_the_repeats_ratios() -> None:
    # Medians of the times first would give 4 / 2.
    assert results([1.0, 2.0, 8.0], [3.0, 8.0, 4.0]).ratio("sort") == 3.0
    assert results([1.0, 2.0, 8.0], [3.0, 8.0, 4.0]).median("sort", OURS) == 2.0


def test_a_repeat_that_failed_on_one_side_is_left_out() -> None:
    assert results([1.0, None, 2.0], [5.0, 100.0, 2.0]).ratio("sort") == 3.0
    assert results([None], [1.0]).ratio("sort") is None
    assert results([], []).ratio("sort") is None


def test_the_geometric_mean_skips_what_is_missing() -> None:
    assert geomean([4.0, None, 1.0]) == pytest.approx(2.0)
    assert geomean([None]) is None


def test_a_wrong_checksum_is_an_error_and_no_number() -> None:
    made = Results()
    made.add_program(OURS, "sort", Result(1.0, "a" * 16))
    made.add_program(QEMU, "sort", Result(1.0, "b" * 16))
    assert made.errors == [f"qemu: sort: checksum {'b' * 16}, but {'a' * 16} on hartbeat"]
    assert made.ratio("sort") is None
    made.add_program(OURS, "sort", Result(1.0, "c" * 16))
    assert len(made.errors) == 2


def test_equal_checksums_are_no_error() -> None:
    made = Results()
    for kind in (OURS, QEMU, NATIVE):
        made.add_program(kind, "sort", Result(2.0, "a" * 16))
    assert made.errors == []
    assert made.ratio("sort", QEMU, NATIVE) == 1.0


# ---- what a machine prints

FAKE = "echo OpenSBI; echo 'bench: init'; {body}"


def fake(tmp_path: Path, body: str) -> tuple[Kind, Guest]:
    script = tmp_path / "fake"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return Kind("fake", (str(script),)), Guest(tmp_path / "Image", tmp_path / "initrd", "a=b", "6.12", True)


def test_results_are_read_off_the_console(tmp_path: Path) -> None:
    body = FAKE.format(
        body="echo 'sort 0.5 00000000000000ff\r'; echo '[ 1.0] cas-2 1.0 ff'; echo cas-2 1.25 " + "0" * 16
    )
    found: dict[str, Result] = {}
    boot = machine.run_guest(*fake(tmp_path, body), 4, ["sort", "cas-2"], found)
    assert found == {"sort": Result(0.5, "00000000000000ff"), "cas-2": Result(1.25, "0" * 16)}
    assert boot > 0


def test_a_guest_gets_programs_and_sizes_on_its_command_line(tmp_path: Path) -> None:
    _, guest = fake(tmp_path, "")
    options = guest.options(4, "sort", "cas-2")
    assert options[options.index("-append") + 1] == "a=b rdinit=/bench -- init quick sort cas-2"
    assert options[:4] == ["-smp", "4", "-m", "1G"]


def test_a_guest_with_devices_gets_their_options_and_is_told_to_set_them_up(tmp_path: Path) -> None:
    _, guest = fake(tmp_path, "")
    devices.fill(tmp_path / "disk", devices.PIECE)
    made = devices.Devices(tmp_path / "disk", 77, "user")
    seen = []
    for name in (OURS, QEMU):
        with made.plugged(Kind(name), guest) as plugged:
            seen.append(plugged.options(4, "rr"))
    assert seen[0] == seen[1]
    assert seen[0][5 + 4] == "a=b rdinit=/bench -- init quick devices port=77 rr"
    assert f"file={tmp_path}/disk,format=raw,if=none,id=disk" in seen[0]


def test_qemus_passt_ends_with_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passt").write_text(f'#!/bin/sh\n[ "$1" = --help ] && exit\necho $$ > {tmp_path}/pid\nsleep 1000\n')
    (tmp_path / "passt").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _, guest = fake(tmp_path, "")
    devices.fill(tmp_path / "disk", devices.PIECE)
    with devices.Devices(tmp_path / "disk", 77, "passt").plugged(Kind(QEMU), guest) as plugged:
        (fd,) = plugged.fds
        assert f"stream,id=net,server=off,addr.type=fd,addr.str={fd}" in plugged.devices
        while not (tmp_path / "pid").exists() or not (pid := (tmp_path / "pid").read_text()):
            time.sleep(0.01)
        assert psutil.pid_exists(int(pid))
    assert is_gone(int(pid))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo Oops", "fake: ended before /init ran; last output: 'Oops'"),
        (FAKE.format(body="echo 'sort 0.5 00000000000000ff'"), "fake: no result of cas-2; last output: 'sort 0.5"),
        (FAKE.format(body="echo sort failed 11; echo cas-2 1.0 " + "0" * 16), "fake: sort ended with wait status 11"),
        (FAKE.format(body=f"echo sort 1.0 {'0' * 16}; echo cas-2 1.0 {'0' * 16}; exit 3"), "fake: ended with status 3"),
    ],
)
def test_a_machine_that_fails_is_told_in_one_line(tmp_path: Path, body: str, reason: str) -> None:
    with pytest.raises(RunError) as caught:
        machine.run_guest(*fake(tmp_path, body), 4, ["sort", "cas-2"], {})
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_what_ran_before_a_failure_is_kept(tmp_path: Path) -> None:
    found: dict[str, Result] = {}
    with pytest.raises(RunError):
        machine.run_guest(*fake(tmp_path, FAKE.format(body="echo sort 1.0 " + "0" * 16)), 4, ["sort", "cas-2"], found)
    assert list(found) == ["sort"]


def test_a_machine_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LINE_SECONDS", 5)
    kind, guest = fake(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/child; echo partial; wait")
    with pytest.raises(RunError, match=r"fake: boot: nothing for 5 s; last output: 'partial'"):
        machine.run_guest(kind, guest, 4, ["sort"], {})
    assert is_gone(int((tmp_path / "child").read_text()))


def is_gone(pid: int) -> bool:
    """No such process within a minute, or a dead one that its new parent has not looked after."""
    for _ in range(1200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


# ---- showing


def test_the_table_has_a_line_a_row_and_the_mean() -> None:
    lines = report.table(results([1.0], [4.0]), ROWS)
    assert re.split(r"\s+", lines[1].strip()) == ["sort", "a", "1.000", "4.000", "-", "4.00", "-"]
    assert lines[2].split()[2:] == ["-"] * 5
    assert re.split(r"\s+", lines[-1].strip()) == ["geomean", "4.00", "-"]
    assert len({len(line) for line in lines}) == 1


def test_bars_go_right_where_hartbeat_is_faster_and_left_where_slower() -> None:
    _, double, half, same = report.chart({"a": 2.0, "b": 0.5, "c": 1.0})
    assert double == f"a{'':25}|======== 2.00"
    assert half == f"b{'':17}========| 0.50"
    assert same.endswith("| 1.00")


@pytest.mark.parametrize("value", [1e-6, 1e6])
def test_a_chart_stays_in_its_width(value: float) -> None:
    assert all(len(line) < 100 for line in report.chart({"a": value, "b": 1.0}))


def test_the_picture_has_a_bar_a_row() -> None:
    root = ET.fromstring(report.svg({"a": 2.0, "b": 0.25}, "A & B"))
    bars = [e for e in root if e.tag.endswith("rect")][1:]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert float(bars[1].attrib["x"]) + widths[1] == pytest.approx(float(bars[0].attrib["x"]), abs=0.2)


def test_json_has_every_measurement() -> None:
    made = results([1.0, None], [4.0, 5.0])
    made.add_cost(OURS, "start", 0.5)
    read = json.loads(json.dumps(report.as_json(made, ROWS, {"repeats": 2})))
    assert read["rows"]["sort"]["seconds"] == {"hartbeat": [1.0, None], "qemu": [4.0, 5.0]}
    assert read["rows"]["sort"]["qemu/hartbeat"] == read["geomean"] == 4.0
    assert read["costs"] == {"start": {"hartbeat": [0.5]}}


# ---- the command


@pytest.fixture(scope="module")
def command() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench_command", str(ROOT / "scripts" / "bench"))
    spec = importlib.util.spec_from_loader("bench_command", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--only", "nothing"], "--only nothing: no such row"),
        (["--qemu", "/no/such/qemu"], "/no/such/qemu: not found; install it first"),
        (["--json", "/no/such/folder/file"], "/no/such/folder/file: its directory does not exist"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(
    command: ModuleType, words: list[str], reason: str, capsys: pytest.CaptureFixture[str], compilers: None
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    try:
        assert command.main(words) == 2
    finally:
        signal.signal(signal.SIGTERM, before[0]), signal.signal(signal.SIGHUP, before[1])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench: {reason}")


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both compilers seem to be there."""
    monkeypatch.setattr(build, "guest_compiler", lambda: "riscv64-linux-gnu-gcc")
    monkeypatch.setattr(build, "native_compiler", lambda: "gcc")


def test_a_missing_compiler_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench")], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stderr.splitlines() == [
        "bench: riscv64-linux-gnu-gcc: not found; install it first (Debian package gcc-riscv64-linux-gnu)"
    ]
    assert done.returncode == 2


@pytest.mark.parametrize("words", [["--repeat", "0"], ["--smp", "x"], ["--engine", "numba"], ["more"]])
def test_bad_options_end_with_status_2(command: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parsed(words)
    assert ended.value.code == 2


def test_the_fetched_qemu_runs_with_its_own_libraries_and_firmware(tmp_path: Path) -> None:
    root, kept = tmp_path / "root", tmp_path / "with space" / "kept"
    for name, text in {
        f"usr/bin/{qemu.NAME}": "",
        f"{qemu.LIBRARIES}/ld-linux-x86-64.so.2": '#!/bin/sh\nprintf "%s\\n" "$@"\n',
        "usr/share/qemu/firmware": "",
        "usr/share/doc/large": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    qemu.keep(root, kept)
    done = subprocess.run([str(kept / qemu.NAME), "-M", "a b"], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.splitlines() == [
        *("--inhibit-cache", "--library-path", str(kept / qemu.LIBRARIES)),
        *(str(kept / "usr/bin" / qemu.NAME), "-M", "a b"),
    ]
    assert (kept / "usr/bin/qemu-bundle/usr/share/qemu/firmware").exists()
    assert not (kept / "usr/share/doc").exists()


def test_apt_asks_for_the_hosts_architecture_and_all_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        (tmp_path / "bin" / tool).write_text('#!/bin/sh\nprintf "%s\\n" "$@" > called\n')
        (tmp_path / "bin" / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(guest, "KEYRINGS", (tmp_path,))
    apt = guest.Apt(tmp_path / "apt", "http://mirror.example/debian", qemu.ARCHITECTURE)
    apt.download_with_dependencies(qemu.PACKAGE)
    called = (tmp_path / "apt/debs/called").read_text().split()
    assert f"Dir::Cache::archives={tmp_path / 'apt/debs'}" in called
    assert called[-4:] == ["-y", "--download-only", "--no-install-recommends", qemu.PACKAGE]
    assert (tmp_path / "apt/sources.list").read_text().startswith("deb [arch=amd64 signed-by=")


# ---- the programs

QUICK_SORT, QUICK_HASH, QUICK_CRC = 20000, 64 << 10, 4


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checksums of all programs in their quick size, on the host."""
    binary = build.compile_programs("gcc", tmp_path_factory.mktemp("bench") / "native", "-Wall", "-Wextra", "-Werror")
    found: dict[str, Result] = {}
    machine.run_native(binary, [row.name for row in all_rows(4) if row.guest], True, found)
    assert all(result.seconds > 0 for result in found.values())
    return {name: result.checksum for name, result in found.items()}


def chances(count: int) -> Iterator[int]:
    seed = 1
    for _ in range(count):
        seed = (seed * 1664525 + 1013904223) & 0xFFFFFFFF
        yield seed


def xorshifted(x: int, times: int) -> int:
    for _ in range(times):
        x ^= x << 13 & (1 << 64) - 1
        x ^= x >> 7
        x ^= x << 17 & (1 << 64) - 1
    return x


def folded(values: Iterator[int]) -> int:
    total = 0
    for value in values:
        total = (total * 31 + value) & (1 << 64) - 1
    return total


def model(name: str) -> int:
    if name == "sort":
        return folded(iter(sorted(chances(QUICK_SORT))))
    if name == "hash":
        data = bytes(word >> 24 for word in chances(QUICK_HASH))
        return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    if name == "crc":
        return zlib.crc32(bytes(word >> 24 for word in chances(64 << 10)) * QUICK_CRC)
    if name == "chase":
        return chased((1 << 20) // 8, 100000)
    return {
        "syscall": 10000,
        "exec": 10,
        "fault": sum(range(0, 16 << 20, 4096)),
        "work-1": sum(xorshifted(item + 1, 20000) for item in range(64)) & (1 << 64) - 1,
        "amoadd-1": sum(item * 5000 + 4999 * 5000 // 2 for item in range(64)),
    }[name]


def chased(n: int, steps: int) -> int:
    following = list(range(n))
    for i, word in zip(range(n - 1, 0, -1), chances(n - 1), strict=True):
        j = word * i >> 32
        following[i], following[j] = following[j], following[i]
    at = 0
    for _ in range(steps):
        at = following[at]
    return at


@pytest.mark.parametrize("name", ["sort", "hash", "crc", "chase", "syscall", "exec", "fault", "amoadd-1"])
def test_a_program_computes_what_a_model_does(name: str, quick: dict[str, str]) -> None:
    assert int(quick[name], 16) == model(name)


@pytest.mark.slow
def test_independent_work_computes_what_a_model_does(quick: dict[str, str]) -> None:
    assert int(quick["work-1"], 16) == model("work-1")


def test_a_threaded_checksum_does_not_depend_on_the_number_of_threads(quick: dict[str, str]) -> None:
    for family in ("work", "amoadd", "cas"):
        assert len({quick[f"{family}-{threads}"] for threads in (1, 2, 4)}) == 1
    assert quick["cas-1"] == quick["amoadd-1"]  # the same sum by other means


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.compile_programs("gcc", tmp_path_factory.mktemp("bench-io") / "native")


def run_quick(binary: Path, *words: str) -> dict[str, int]:
    """Checksums; words with = say where things are."""
    found: dict[str, Result] = {}
    done = subprocess.run([str(binary), "quick", *words], capture_output=True, text=True, timeout=240)
    names = [word for word in words if "=" not in word]
    machine.collect(Kind("native"), iter(done.stdout.splitlines()), names, [done.stderr], found)
    return {name: int(result.checksum, 16) for name, result in found.items()}


def test_the_disks_programs_read_and_write_every_block(binary: Path, tmp_path: Path) -> None:
    devices.fill(tmp_path / "disk", size := 4 << 20)
    blocks = size // 4096
    found = run_quick(binary, f"disk={tmp_path}/disk", "seqread", "rand-1", "rand-8", "seqwrite")
    chosen = sum(word * blocks >> 32 for word in chances(500))
    assert found == {"seqread": sum(range(blocks)), "rand-1": chosen, "rand-8": chosen, "seqwrite": 0}
    data = (tmp_path / "disk").read_bytes()
    assert all(int.from_bytes(data[at : at + 8], "little") == at // 4096 for at in range(0, size, 4096))
    assert all(data[at + 8 : at + 16] == b"written\0" for at in range(0, size, 4096))


def test_the_networks_programs_get_what_the_peer_sends(binary: Path) -> None:
    with machine.started([str(binary), "peer"]) as peer:
        assert peer.stdout
        port = int(peer.stdout.readline())
        found = run_quick(binary, "host=127.0.0.1", f"port={port}", "netin", "netout", "rr")
    piece = [(i + i * 4096) & 0xFF for i in range(64)]
    streamed = sum((n + 1) * piece[n % 64] for n in range(16 * 64))
    assert found == {"netin": streamed, "netout": streamed, "rr": sum(n & 0xFF for n in range(100))}


def test_a_program_that_does_not_exist_fails(tmp_path: Path) -> None:
    binary = build.compile_programs("gcc", tmp_path / "native")
    with pytest.raises(RunError, match="native: sorrt ended with wait status 512"):
        machine.run_native(binary, ["sorrt"], True, {})
