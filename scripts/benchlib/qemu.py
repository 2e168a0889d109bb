"""Finds the QEMU to compare with: one in PATH or at a path, or the one of Debian trixie, fetched into the cache.

That one comes through apt with a state of its own, checked against Debian's archive keys, with all libraries it needs,
and runs with those and not with the system's: no root, nothing outside the cache directory.
"""

import hashlib
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from benchlib.build import need_tool
from benchlib.rows import BenchError
from mem.cachedir import cache_directory
from smp.guest import OWN_KERNEL, SUITE, Apt, GuestError, debian_mirror

NAME = "qemu-system-riscv64"
PACKAGE = "qemu-system-riscv"
ARCHITECTURE = "amd64"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
KEPT = (f"usr/bin/{NAME}", "usr/lib", "usr/share/qemu")
FORMAT = 2  # count up when what is kept changes

LOADER = "usr/bin/ld.so"

WRAPPER = """\
#!/bin/sh
# QEMU with the libraries that it was built with.
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/{loader}" --inhibit-cache --library-path "$here/{libraries}" "$here/usr/bin/{name}" "$@"
"""


def find_qemu(given: str) -> str:
    """The command of `--qemu`: the suite's name, or a name in PATH or a path."""
    if given == SUITE:
        return str(suite_qemu())
    return need_tool(given, "qemu-system-misc")


def suite_qemu() -> Path:
    """The wrapper of the fetched QEMU; fetched where the cache lacks it."""
    if platform.machine() != "x86_64":
        raise BenchError(f"--qemu {SUITE}: is for x86_64 hosts, this is {platform.machine()}; use --qemu PATH")
    recipe = hashlib.sha256(repr((FORMAT, SUITE, PACKAGE, KEPT, WRAPPER)).encode()).hexdigest()[:16]
    final = cache_directory() / f"qemu-{SUITE}-{recipe}"
    if not (final / NAME).exists():
        try:
            fetch(final)
        except GuestError as error:
            reason = str(error).replace(OWN_KERNEL, "name another QEMU with --qemu PATH")
            raise BenchError(f"--qemu {SUITE}: {reason}") from error
    return final / NAME


def fetch(final: Path) -> None:
    """Fetches the packages and unpacks what is kept of them; of two at once, one wins."""
    final.parent.mkdir(parents=True, exist_ok=True)
    print(f"bench: fetching {PACKAGE} of Debian {SUITE} and its libraries", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="tmp-qemu-", dir=final.parent) as name:
        work = Path(name)
        apt = Apt(work / "apt", debian_mirror(), ARCHITECTURE)
        apt.update()
        apt.download_with_dependencies(PACKAGE)
        apt.extract(work / "root")
        keep(work / "root", work / "kept")
        if not final.exists():
            (work / "kept").rename(final)


def keep(root: Path, kept: Path) -> None:
    for path in KEPT:
        (kept / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / path, kept / path)
    # QEMU takes firmware and modules from qemu-bundle next to the executable, which is the loader here. Otherwise it
    # would load the modules of the system's QEMU, and those of another version end it.
    (kept / LIBRARIES / "ld-linux-x86-64.so.2").rename(kept / LOADER)
    (kept / "usr/bin/qemu-bundle").symlink_to("../..")
    wrapper = kept / NAME
    wrapper.write_text(WRAPPER.format(loader=LOADER, libraries=LIBRARIES, name=NAME))
    wrapper.chmod(0o755)
