"""Work in a folder of the host's, in Linux: what the guest does there is there, and a command's outcome comes back."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console import TIMEOUT

from smp.guest import default_guest

pytestmark = pytest.mark.boot

ROOT = Path(__file__).resolve().parent.parent
FILES = 150


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    default_guest()


def run(command: str, *options: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Exit status, standard output and standard error of `scripts/boot --run COMMAND`."""
    words = [sys.executable, "-m", "smp.guest", "boot", *options, "--run", command]
    done = subprocess.run(words, cwd=ROOT, input=stdin, capture_output=True, timeout=TIMEOUT)
    return done.returncode, done.stdout, done.stderr


def test_a_command_has_its_own_output_and_status() -> None:
    text = 'it\'s "quoted" $HOME \\ `echo #`'
    script = f"printf '%s\\n' {quoted(text)}\npwd; nproc; cat; test -t 1 || echo 'no terminal'; echo wrong >&2; exit 42"
    status, out, err = run(script, "-smp", "2", stdin=b"not for the guest\n")
    assert out.decode().splitlines() == [text, "/root", "2", "no terminal"]
    assert (status, err) == (42, b"wrong\n")


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_output_is_passed_through_as_it_is_whatever_still_runs() -> None:
    script = "sleep 1000 & setsid sleep 1000 & cat /bin/busybox | head -c 100000; exit 0"
    status, out, _ = run(script, "-smp", "2")
    assert status == 0 and len(out) == 100_000 and out.startswith(b"\x7fELF")


def test_it_ends_when_nobody_reads_its_output() -> None:
    words = [sys.executable, "-m", "smp.guest", "boot", "-smp", "1", "--run", "yes"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(TIMEOUT) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def test_a_guest_that_panics_says_so() -> None:
    status, out, err = run("echo begun; sleep 5; echo c >/proc/sysrq-trigger; sleep 60", "-smp", "2")
    assert status == 1 and out == b"begun\n"
    assert b"Kernel panic" in err and err.endswith(b"hartbeat: --run: the guest ended before the command did\n")


HEAVY = """
set -e
find in -type f | sort | xargs sha256sum >sums.guest
cmp sums sums.guest
tar cf all.tar in
mkdir unpacked
tar xf all.tar -C unpacked
cp -r unpacked/in copied
(cd copied && find . -type f | sort | xargs sha256sum) >sums.copied
mv copied moved
mv moved/d1 moved/renamed
rm -r unpacked/in/d0
ln -s ../all.tar moved/soft
readlink moved/soft
ln all.tar moved/hard
chmod 751 moved/renamed; chmod 4640 all.tar
(cd moved && sha256sum soft hard | cut -d' ' -f1 | uniq | wc -l)
dd if=/dev/urandom of=big bs=1M count=8 2>/dev/null
dd if=big of=part bs=1000 skip=3 count=1000 2>/dev/null
echo appended >>part
truncate -s 5000000 big
sha256sum big part
exec 5<part; rm part; tail -c 9 <&5; exec 5<&-
race() { for i in $(seq 15); do echo "$1 $i" >>racing.$1; mv racing.$1 r.$1; mv r.$1 racing.$1; done; }
for n in 1 2 3 4; do race $n & done
wait
cat racing.* | wc -l
mkfifo fifo; (echo through >fifo) & cat fifo
touch -d '2001-02-03 04:05:06' dated
find . | wc -l
"""


@pytest.mark.parametrize("model", ["none", "mapped-xattr"])
def test_heavy_work_in_a_shared_folder(tmp_path: Path, model: str) -> None:
    contents = fill(tmp_path / "in")
    sums = [f"{hashlib.sha256(data).hexdigest()}  in/{name}\n" for name, data in sorted(contents.items())]
    (tmp_path / "sums").write_text("".join(sums))
    status, out, err = run(HEAVY, "-smp", "2", *share(tmp_path, model))
    lines = out.decode().splitlines()
    assert (status, err) == (0, b""), out
    big = (tmp_path / "big").read_bytes()
    assert lines[:2] == ["../all.tar", "1"] and len(big) == 5_000_000
    assert lines[2] == f"{hashlib.sha256(big).hexdigest()}  big"
    part = big[3000:1_003_000] + b"appended\n"
    assert lines[3:7] == [f"{hashlib.sha256(part).hexdigest()}  part", "appended", "60", "through"]
    assert int(lines[7]) == 1 + sum(1 for _ in tmp_path.rglob("*"))
    check_host(tmp_path, contents, model)


def fill(folder: Path) -> dict[str, bytes]:
    """Some hundred files of all sizes in folders; their contents by name."""
    source = random.Random(11)
    contents = {
        f"d{n % 7}/e{n % 3}/file {n}".replace(" ", "_"): source.randbytes(source.choice([0, 1, 100, 4096, 70_000]))
        for n in range(FILES)
    }
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return contents


def share(folder: Path, model: str) -> list[str]:
    return ["-virtfs", f"local,path={folder},mount_tag=share,security_model={model},multidevs=remap"]


def check_host(folder: Path, contents: dict[str, bytes], model: str) -> None:
    """What the guest did is what is there."""
    for name, data in contents.items():
        there = name.replace("d1/", "renamed/", 1) if name.startswith("d1/") else name
        assert (folder / "moved" / there).read_bytes() == data
        assert (folder / "unpacked/in" / name).exists() != name.startswith("d0/")
    assert (folder / "moved/hard").samefile(folder / "all.tar")
    assert (folder / "dated").stat().st_mtime == 981_173_106
    assert not (folder / "part").exists()
    modes = {name: (folder / name).stat().st_mode & 0o7777 for name in ("moved/renamed", "all.tar")}
    if model == "none":
        assert os.readlink(folder / "moved/soft") == "../all.tar"
        assert modes == {"moved/renamed": 0o751, "all.tar": 0o640}  # the setuid bit is the guest's wish only
        return
    assert (folder / "moved/soft").read_bytes() == b"../all.tar"
    assert modes == {"moved/renamed": 0o700, "all.tar": 0o600}
    assert os.getxattr(folder / "all.tar", "user.virtfs.mode") == (0o104640).to_bytes(4, "little")
    assert (folder / "fifo").is_file()


def test_host_and_guest_see_what_the_other_writes(tmp_path: Path) -> None:
    (tmp_path / "shared").write_bytes(b"old\n")
    script = (
        "cat shared; echo mine >made; mv made there; until [ -e go ]; do sleep 0.1; done; cat shared; ls; cat there"
    )
    words = [sys.executable, "-m", "smp.guest", "boot", "-smp", "1", "--share", str(tmp_path), "--run", script]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (tmp_path / "there").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        assert (tmp_path / "there").read_bytes() == b"mine\n"
        (tmp_path / "shared").write_bytes(b"new and longer\n")
        (tmp_path / "there").unlink()
        (tmp_path / "go").write_bytes(b"")
        out, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
        process.wait()
    assert out == b"old\nnew and longer\ngo\nshared\n" and process.returncode == 1


def test_a_readonly_folder_is_read_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    status, out, err = run(
        "cat kept; echo x >new; rm kept; chmod 600 kept; echo y >>kept; cat kept",
        *("-smp", "1", *[option.replace("multidevs", "readonly=on,multidevs") for option in share(tmp_path, "none")]),
    )
    assert (status, out) == (0, b"keptkept") and err.count(b"Read-only file system") == 4
    assert os.listdir(tmp_path) == ["kept"] and (tmp_path / "kept").read_bytes() == b"kept"


def test_calls_of_a_program_that_runs_from_the_folder(tmp_path: Path) -> None:
    """A static program, which Linux maps from the share, and what no tool of busybox does there."""
    words = ["riscv64-linux-gnu-gcc", "-O1", "-static", "-Wall", "-o", tmp_path / "calls", ROOT / "tests/linux/calls.c"]
    built = subprocess.run(words, capture_output=True, text=True, timeout=240)
    if built.returncode:
        pytest.skip("no C library for riscv64 here")
    status, out, err = run("./calls one two", "--share", str(tmp_path), "-smp", "2")
    assert (status, out.decode(), err) == (3, "all is well: one two\n", b"")
    assert (tmp_path / "mapped").read_bytes() == b"M" * 10_000 + b"x" * 2
    assert sorted((tmp_path / "appended").read_text().split()) == sorted(["parent"] * 100 + ["child"] * 100)
    assert os.getxattr(tmp_path / "mapped", "user.kept") == b"value"
