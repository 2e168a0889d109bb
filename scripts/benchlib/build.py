"""Builds what runs: the programs for guest and host, the guest's initrd, and the smallest bare-metal guest."""

import shutil
import subprocess
from pathlib import Path

from benchlib.rows import BenchError
from smp.initramfs import overlay

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ROOT / "scripts" / "bench-programs"
CROSS, NATIVE = "riscv64-linux-gnu-gcc", "gcc"
FLAGS = ("-O2", "-std=gnu11", "-static", "-pthread")
GUEST_FLAGS = ("-march=rv64gc", "-mabi=lp64d")
BARE_FLAGS = (
    *("-march=rv64gc", "-mabi=lp64d", "-nostdlib", "-static"),
    *("-Wl,-N", "-Wl,-Ttext=0x80000000", "-Wl,--no-warn-rwx-segments", "-Wl,--build-id=none"),
)
IN_GUEST = "/bench"  # the programs' path in the initrd
SET_UP = "devices.sh"
SET_UP_IN_GUEST = "/bench-devices"
COMPILE_SECONDS = 120


def need_tool(name: str, package: str) -> str:
    """The path of a tool, or what to install."""
    path = shutil.which(name)
    if path is None:
        raise BenchError(f"{name}: not found; install it first (Debian package {package})")
    return path


def guest_compiler() -> str:
    return need_tool(CROSS, "gcc-riscv64-linux-gnu")


def native_compiler() -> str:
    return need_tool(NATIVE, "gcc")


def compile_programs(compiler: str, output: Path, *flags: str) -> Path:
    """All programs as one static binary."""
    sources = [str(path) for path in sorted(PROGRAMS.glob("*.c"))]
    return compiled([compiler, *FLAGS, *flags, *sources, "-lm"], output)


def compile_bare(compiler: str, output: Path) -> Path:
    return compiled([compiler, *BARE_FLAGS, str(PROGRAMS / "end.S")], output)


def compiled(command: list[str], output: Path) -> Path:
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise BenchError(f"{command[0]}: {reason}")
    return output


def guest_initrd(default_initrd: Path, programs: Path, output: Path) -> Path:
    """The default guest's initrd and the programs: every machine boots the same."""
    added = {IN_GUEST: programs.read_bytes(), SET_UP_IN_GUEST: (PROGRAMS / SET_UP).read_bytes()}
    output.write_bytes(overlay(default_initrd.read_bytes(), added))
    return output


def version_of(command: tuple[str, ...]) -> str:
    """The first line of what `command --version` says."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    if done.returncode or not done.stdout:
        raise BenchError(f"{command[0]} --version: {(done.stderr.strip().splitlines() or ['failed'])[0]}")
    return done.stdout.splitlines()[0]
