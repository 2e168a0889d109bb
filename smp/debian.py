"""Debian with systemd on a disk image, for any machine that boots a kernel with `root=`.

mmdebstrap fetches and extracts the packages; what only their own architecture can do, which is to configure them, is
done by Hartbeat, on a first boot. That image is kept in the cache directory; the one asked for is a copy with its host
name, keys and size, made without a boot. Needs no root; touches the cache directory and the image.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mem.cachedir import cache_directory
from smp import debian_tree, guest
from smp.cpu import ConfigError
from smp.debian_disk import Disk, ext4_tool, run_tool
from smp.guest import ARCHITECTURE, SUITE, GuestError
from smp.option_text import escape, size

PACKAGES = (
    "apt",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libnss-resolve",
    "libpam-systemd",
    guest.KERNEL_PACKAGE,
    "login",
    "openssh-server",
    "procps",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
)
FORMAT = 1  # count up when a base image is made in another way
DISK_SIZE = 4 << 30
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "openssl": "openssl",
}
DONE = re.compile(r"(?m)^hartbeat: setup ended with status (\d+)")
SETUP = "root=/dev/vda rw init=/setup console=ttyS0 quiet panic=-1"
SETUP_SECONDS = 3600
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# How this machine reaches the mirror; the other settings of its apt are not for the guest's packages.
REACH = re.compile(r"Acquire::(http|https|ftp|socks|Check-|Retries|ForceIPv|Proxy)", re.I)


def base_name(packages: Sequence[str], mirror: str) -> tuple[str, str]:
    """Digests of what is asked for, and of how it is made: together all that decides what is in it, but the day."""
    asked = hashlib.sha256(repr((SUITE, ARCHITECTURE, mirror, sorted(packages))).encode())
    made = hashlib.sha256(repr(FORMAT).encode())
    sources = [Path(debian_tree.__file__), *sorted(debian_tree.OVERLAY.rglob("*"))]
    for path in sources:
        if path.is_file():
            made.update(path.read_bytes())
    return asked.hexdigest()[:8], made.hexdigest()[:8]


def base_image(packages: Sequence[str], refresh: bool) -> Path:
    """The configured system that images are copies of; made where the cache lacks it, or anyway with `refresh`."""
    cache = cache_directory() / "debian"
    mirror = guest.debian_mirror()
    asked, made = base_name(packages, mirror)
    final = cache / f"base-{asked}-{made}.img"
    with guest.locked(cache):
        if refresh or not final.exists():
            for left_by_a_killed_run in cache.glob("tmp-*"):
                shutil.rmtree(left_by_a_killed_run)
            with tempfile.TemporaryDirectory(prefix="tmp-", dir=cache) as work:
                new = Path(work, "disk.img")
                extract(packages, mirror, new)
                configure(new)
                new.replace(final)
            for old in cache.glob(f"base-{asked}-*"):
                if old != final:
                    old.unlink()
    return final


def extract(packages: Sequence[str], mirror: str, image: Path) -> None:
    """An image with the packages unpacked on it; apt checks them against Debian's archive keys."""
    guest.step(f"fetching and unpacking Debian {SUITE} ({ARCHITECTURE})")
    source = f"deb [arch={ARCHITECTURE} signed-by={guest.keyring()}] {mirror} {SUITE} main"
    hook = shlex.join([sys.executable, "-P", "-m", "smp.debian_tree"])
    acquire = image.with_name("acquire.conf")
    acquire.write_text("".join(f"{line}\n" for line in apt_settings() if REACH.match(line)))
    command = [
        *([] if os.geteuid() == 0 else ["fakeroot"]),
        *("mmdebstrap", "--quiet", "--mode=chrootless", "--variant=extract", f"--architectures={ARCHITECTURE}"),
        *("--format=null", "--include=?essential", f"--include={','.join(packages)}", "--skip=cleanup/apt"),
        f'--setup-hook=cp {shlex.quote(str(acquire))} "$1"/{debian_tree.HOST_APT}',
        f'--extract-hook={hook} "$1" {shlex.quote(str(image))}',
        *(SUITE, "/dev/null", source),
    ]
    run_tool(command, os.environ | {"TMPDIR": str(image.parent)})


def apt_settings() -> list[str]:
    return run_tool(["apt-config", "dump"]).splitlines()


def configure(image: Path) -> None:
    """Boots it with scripts/debian/setup as process 1, and sees that this succeeded."""
    guest.step("configuring the packages, on Hartbeat")
    kernel = guest.default_guest()
    harts = str(min(4, len(os.sched_getaffinity(0))))
    command = [sys.executable, "-P", "-m", "smp", "-nographic", "-no-reboot", "-smp", harts, "-m", "1G"]
    command += ["-kernel", str(kernel.kernel), "-initrd", str(kernel.initrd), "-append", SETUP]
    command += ["-drive", f"file={escape(str(image))},format=raw"]
    log = cache_directory() / "debian" / "setup.log"
    with log.open("wb") as out, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=SETUP_SECONDS)
    found = DONE.search(log.read_text(errors="replace").replace("\r", ""))
    if found is None or found[1] != "0":
        raise GuestError(f"{log}: the packages could not be configured; its end says why")
    Disk(image).check()


def make(args: argparse.Namespace) -> None:
    """The image `args.file`; GuestError says what is wrong with the request, or missing on this machine."""
    check(args)
    base = base_image(sorted({*PACKAGES, *args.include}), args.refresh)
    with tempfile.TemporaryDirectory(prefix=".hartbeat-", dir=args.file.absolute().parent) as work:
        disk = Disk(Path(work, "disk.img"))
        run_tool(["cp", "--sparse=always", "--reflink=auto", str(base), str(disk.path)])
        personalize(disk, args)
        disk.resize(args.size or max(DISK_SIZE, disk.path.stat().st_size))
        result = disk.path
        if args.format != "raw":
            result = Path(work, "disk.converted")
            run_tool(["qemu-img", "convert", "-O", args.format, str(disk.path), str(result)])
        result.replace(args.file)


def check(args: argparse.Namespace) -> None:
    folder = args.file.absolute().parent
    if not os.path.isdir(folder):
        raise GuestError(f"{args.file}: its folder does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise GuestError(f"{args.file}: you can't write to its folder; name a file in one of yours")
    if args.file.exists():
        raise GuestError(f"{args.file}: is there already; remove it, or name another file")
    if not NAME.fullmatch(args.hostname):
        raise GuestError(f"--hostname {args.hostname}: not a host name; use a-z, 0-9 and -, at most 63")
    if args.ssh_key and not re.match(r"(ssh|ecdsa|sk)-\S+ \S+", text_of(args.ssh_key)):
        raise GuestError(f"--ssh-key {args.ssh_key}: not a public key; name the .pub file that ssh-keygen made")
    needed = TOOLS | ({} if args.format == "raw" else {"qemu-img": "qemu-utils"})
    needed |= {} if os.geteuid() == 0 else {"fakeroot": "fakeroot"}
    for tool, package in needed.items():
        if ext4_tool(tool) is None:
            raise GuestError(f"{tool}: not found; apt install {package}")


def text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise GuestError(f"--ssh-key {path}: {error.strerror}; name a file that you can read") from error


def personalize(disk: Disk, args: argparse.Namespace) -> None:
    """What is not the same in all images of a base."""
    disk.write("/etc/hostname", f"{args.hostname}\n")
    disk.write("/etc/hosts", disk.read("/etc/hosts") + f"127.0.1.1 {args.hostname}\n")
    source = f"deb [signed-by=/usr/share/keyrings/{guest.keyring().name}] {guest.debian_mirror()} {SUITE} main\n"
    disk.write("/etc/apt/sources.list", source)
    if args.ssh_key:
        disk.mkdir("/root/.ssh", 0o700)
        disk.write("/root/.ssh/authorized_keys", text_of(args.ssh_key), 0o600)
    if args.password is not None:
        hashed = run_tool(["openssl", "passwd", "-6", "-stdin"], given=args.password + "\n").strip()
        shadow = re.sub(r"(?m)^root:[^:]*", lambda _: f"root:{hashed}", disk.read("/etc/shadow"))
        disk.write("/etc/shadow", shadow, 0o640, group=SHADOW)


SHADOW = 42  # base-passwd: the same in every Debian


def boot_words(args: argparse.Namespace) -> list[str]:
    """The command that boots the image."""
    drive = f"file={escape(str(args.file))},format={args.format}"
    network = ["-nic", "user,hostfwd=tcp:127.0.0.1:2222-:22"]
    return ["scripts/boot", "-drive", drive, *network, "-append", "root=/dev/vda rw console=ttyS0"]


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/debian-image",
        description=f"Make a disk image of Debian {SUITE} with systemd. On the console, root needs no password.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the image to make")
    parser.add_argument("--format", default="raw", choices=("raw", "qcow2"), help="of the image (raw)")
    parser.add_argument("--size", type=disk_size, metavar="SIZE", help="of the disk (4G); a raw file grows as it fills")
    parser.add_argument("--hostname", default="debian", metavar="NAME", help="name of the machine (debian)")
    parser.add_argument("--password", metavar="WORD", help="of root on the console")
    parser.add_argument("--ssh-key", type=Path, metavar="FILE", help="public key that root logs in with by ssh")
    parser.add_argument("--include", type=names, default=[], metavar="PACKAGE,...", help="more packages, by name")
    parser.add_argument("--refresh", action="store_true", help="fetch the packages again, as Debian has them now")
    return parser.parse_args(words)


def disk_size(text: str) -> int:
    try:
        return size("--size", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def names(text: str) -> list[str]:
    found = [name for name in text.split(",") if name]
    for name in found:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
            raise argparse.ArgumentTypeError(f"{name!r} is not the name of a package; separate names by commas")
    return found


def main(words: Sequence[str] | None = None) -> int:
    args = parsed(sys.argv[1:] if words is None else words)
    try:
        make(args)
    except GuestError as error:
        print(f"hartbeat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # what a shell calls an end by Ctrl-C; nothing is left but what the cache has
    except OSError as error:
        print(f"hartbeat: {error.filename}: {error.strerror}; is there room for the image?", file=sys.stderr)
        return 2
    print(shlex.join(boot_words(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
