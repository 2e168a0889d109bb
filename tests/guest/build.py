"""Cross-compile the guest programs: `build("traps")` gives the path of an ELF for `-bios none -kernel`.

Results lie in a cache folder of the user, named by a digest of the compiler and of everything that goes in, so that
a second test run compiles nothing and a change of any source compiles again.
"""

import argparse
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = ("start.S", "runtime.c")
COMPILERS = ("riscv64-linux-gnu-gcc", "riscv64-unknown-elf-gcc", "riscv64-elf-gcc")
# No relaxation against gp and no small data: the runtime sets no gp.
FLAGS = (
    *("-mabi=lp64d", "-mcmodel=medany", "-msmall-data-limit=0", "-O2", "-g0", "-std=gnu11"),
    *("-Wall", "-Wextra", "-Werror"),
    *("-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-pie"),
    *("-no-pie", "-nostdlib", "-static"),
    *("-Wl,--build-id=none", "-Wl,--no-relax", "-Wl,--no-warn-rwx-segments"),
)


class NoCompiler(RuntimeError):
    """No RISC-V cross compiler on PATH."""


class BuildError(RuntimeError):
    """The compiler refused a program; the message is what it said."""


@functools.cache
def compiler() -> str:
    """Name of the first cross compiler found, or the one in $RISCV_CC."""
    wanted = [os.environ["RISCV_CC"]] if os.environ.get("RISCV_CC") else COMPILERS
    for name in wanted:
        if shutil.which(name):
            return name
    raise NoCompiler(f"none of {', '.join(wanted)} is on PATH: install gcc-riscv64-linux-gnu or set RISCV_CC")


@functools.cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], check=True, capture_output=True, text=True).stdout


def programs() -> list[str]:
    """Names of all programs: every C file but the runtime."""
    return sorted(p.stem for p in HERE.glob("*.c") if p.name not in RUNTIME)


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hartbeat" / "guest"


def digest(options: list[str], sources: list[Path]) -> str:
    sha = hashlib.sha256("\0".join([compiler_version(), *options]).encode())
    for path in sources:
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:20]


def build(name: str, march: str = "rv64gc", defines: tuple[str, ...] = ()) -> Path:
    """Path of the ELF of program `name`; `defines` are -D options such as `"ROUNDS=100"`."""
    options = [f"-march={march}", *(f"-D{define}" for define in defines), *FLAGS]
    headers = sorted(HERE.glob("*.h"))
    sources = [HERE / f"{name}.c", *(HERE / part for part in RUNTIME), HERE / "link.ld", *headers]
    elf = cache_folder() / f"{name}-{digest(options, sources)}.elf"
    if not elf.exists():
        compile_to(elf, name, options)
    return elf


def compile_to(elf: Path, name: str, options: list[str]) -> None:
    elf.parent.mkdir(parents=True, exist_ok=True)
    # Compiled beside and renamed: several test processes may build the same program at once.
    with tempfile.TemporaryDirectory(dir=elf.parent) as folder:
        out = Path(folder) / "elf"
        parts = [f"{name}.c", *RUNTIME]
        command = [compiler(), *options, "-T", "link.ld", *parts, "-o", str(out)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{name}: {' '.join(command)}\n{done.stderr}")
        out.replace(elf)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build guest programs and print the paths of their ELF files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs to build (default: all)")
    parser.add_argument("--march", default="rv64gc")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME[=VALUE]")
    args = parser.parse_args()
    try:
        for name in args.names or programs():
            print(build(name, args.march, tuple(args.defines)))
    except (NoCompiler, BuildError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
