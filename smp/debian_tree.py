"""Makes a disk image of a folder of extracted Debian packages, with a dpkg database that calls them unpacked.

mmdebstrap runs it as a hook, under fakeroot where the user is not root: owners are right, and nothing of the packages
is executed. Their maintainer scripts run later, on the harts: see scripts/debian/setup, which the tree gets with the
other files of scripts/debian.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

OVERLAY = Path(__file__).resolve().parent.parent / "scripts" / "debian"
ARCHIVES = "var/cache/apt/archives"
HOST_APT = "etc/apt/apt.conf.d/00host"  # how the host reaches its mirror, while mmdebstrap runs
LABEL = "debian"
MIB = 1 << 20
SPARE = 768 * MIB  # what maintainer scripts, the journal and the file system itself need beside the files
SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")


@dataclass(frozen=True)
class Package:
    """What dpkg keeps of a package: its control files, and the paths that it ships."""

    control: str
    files: dict[str, bytes]
    paths: list[str]

    def field(self, name: str) -> str:
        found = re.search(rf"(?m)^{name}: *(.*)$", self.control)
        return found[1].strip() if found else ""

    @property
    def key(self) -> str:
        """Names its files in dpkg's folder: with the architecture, if it may be installed for several at once."""
        name = self.field("Package")
        return f"{name}:{self.field('Architecture')}" if self.field("Multi-Arch") == "same" else name

    def text(self, name: str) -> str:
        return self.files.get(name, b"").decode()


def read_package(deb: Path) -> Package:
    """deb(5), as dpkg-deb unpacks it."""
    control_tar = subprocess.run(["dpkg-deb", "--ctrl-tarfile", str(deb)], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(control_tar)) as tar:
        members = {member.name.removeprefix("./"): tar.extractfile(member) for member in tar if member.isreg()}
        files = {name: member.read() for name, member in members.items() if member}
    return Package(files.pop("control").decode(), files, shipped(deb))


def shipped(deb: Path) -> list[str]:
    """The paths of a package as dpkg lists them: absolute, its root as `/.`, folders without a slash at the end."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            names = [member.name.removeprefix(".").rstrip("/") for member in tar]
        assert process.stdout
        process.stdout.read()  # the padding at the end
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [name or "/." for name in names]


def stanza(package: Package, tree: Path) -> str:
    """Its entry in /var/lib/dpkg/status."""
    lines = [package.control.strip(), "Status: install ok unpacked"]
    conffiles = [words[0] for line in package.text("conffiles").splitlines() if len(words := line.split()) == 1]
    if conffiles:
        lines.append("Conffiles:")
    for name in conffiles:
        lines.append(f" {name} {hashlib.md5((tree / name.lstrip('/')).read_bytes()).hexdigest()}")
    return "\n".join(lines) + "\n"


def interests(packages: Iterable[Package]) -> dict[str, str]:
    """The files in /var/lib/dpkg/triggers: deb-triggers(5), and dpkg's doc/spec/triggers.txt on how they are kept."""
    found: dict[str, str] = {}
    for package in packages:
        for words in (line.split("#")[0].split() for line in package.text("triggers").splitlines()):
            if not words or not words[0].startswith("interest"):
                continue
            who = package.key + "/noawait" * words[0].endswith("-noawait")
            name, line = ("File", f"{words[1]} {who}") if words[1].startswith("/") else (words[1], who)
            found[name] = found.get(name, "") + line + "\n"
    return found


def write_database(packages: list[Package], database: Path, tree: Path) -> None:
    """dpkg's database of `tree`, in the state of a system whose packages are all unpacked and none configured."""
    info = database / "info"
    for folder in (info, database / "triggers", database / "updates"):
        folder.mkdir(parents=True, exist_ok=True)
    (info / "format").write_text("1\n")
    for package in packages:
        files = package.files | {"list": "".join(path + "\n" for path in package.paths).encode()}
        for name, data in files.items():
            path = info / f"{package.key}.{name}"
            path.write_bytes(data)
            path.chmod(0o755 if name in SCRIPTS else 0o644)
    for name, text in interests(packages).items():
        (database / "triggers" / name).write_text(text)
    (database / "status").write_text("\n".join(stanza(package, tree) for package in packages))
    (database / "available").touch()
    # To mmdebstrap on this machine, the guest's own architecture is a foreign one.
    (database / "arch").unlink(missing_ok=True)


def drop_downloads(tree: Path) -> None:
    """Takes away what apt has fetched, and what mmdebstrap has copied from this machine."""
    for folder in (ARCHIVES, "var/cache/apt", "var/lib/apt/lists"):
        for path in (tree / folder).iterdir():
            if path.is_file():
                path.unlink()
    for name in ("etc/resolv.conf", "etc/hostname", HOST_APT):
        (tree / name).unlink(missing_ok=True)


def add_overlay(tree: Path) -> None:
    for path in sorted(OVERLAY.rglob("*")):
        if path.is_file():
            to = tree / path.relative_to(OVERLAY)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
            # Only the executable bit counts: the others depend on the umask of the checkout.
            to.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


def disk_size(tree: Path) -> int:
    """Bytes of a file system for the files and what comes while they are configured, in whole MiB."""
    used = sum(path.lstat().st_blocks * 512 for path in tree.rglob("*"))
    return (used * 5 // 4 + SPARE) // MIB * MIB


def make_image(tree: Path, image: Path) -> None:
    """The image of an extracted tree; the tree is changed into what the image holds."""
    debs = sorted((tree / ARCHIVES).glob("*.deb"))
    with ThreadPoolExecutor() as pool:
        packages = list(pool.map(read_package, debs))
    write_database(packages, tree / "var/lib/dpkg", tree)
    drop_downloads(tree)
    add_overlay(tree)
    mke2fs = shutil.which("mke2fs", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin") or "mke2fs"
    options = ["-q", "-F", "-t", "ext4", "-L", LABEL, "-E", "root_owner=0:0", "-d", str(tree)]
    subprocess.run([mke2fs, *options, str(image), f"{disk_size(tree) // MIB}M"], check=True)


if __name__ == "__main__":
    make_image(Path(sys.argv[1]), Path(sys.argv[2]))
