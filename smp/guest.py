"""The default guest: Debian's riscv64 kernel, OpenSBI, and an initramfs of busybox with the virtio modules.

Packages come through apt, from the mirror this machine is configured for, with apt state of our own, checked
against Debian's archive keys. Everything is kept in the cache directory and found there the next time without
network. Touches nothing outside the cache directory; needs no root.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mem.cachedir import cache_directory, keep_bytecode
from smp import initramfs

SUITE = "trixie"
ARCHITECTURE = "riscv64"
KERNEL_PACKAGE = "linux-image-riscv64"  # depends on the current kernel of the suite
PACKAGES = ("busybox-static", "opensbi")

# Loaded at each boot, if the device is there: stored as what the guest loads fastest.
BOOT_MODULES = ("virtio_mmio", "virtio_blk", "virtio_rng", "virtio_net", "virtio_console")
# Loaded at boot when the host shares a folder, or for a system on a disk: stored the same way.
SHARE_MODULES = ("9p", "9pnet_virtio")
ROOT_MODULES = ("ext4", "crc32c_generic")  # ext4 asks for crc32c by its alias only
# For `modprobe`; stored as Debian ships them.
MORE_MODULES = (*ROOT_MODULES, "virtio_balloon", "virtiofs", "vmw_vsock_virtio_transport", *SHARE_MODULES)

OPENSBI = f"usr/lib/{ARCHITECTURE}-linux-gnu/opensbi/generic"
FIRMWARE = ("fw_dynamic.bin", "fw_jump.bin")
PARTS_FORMAT = 1  # count up when what is kept of the packages changes

APPEND = "console=ttyS0 earlycon"
DEFAULTS = {"-smp": "4", "-m": "1G"}
COMMAND_LINE_SIZE = 1024  # Linux arch/riscv/include/uapi/asm/setup.h, with the NUL

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
SOURCES = Path("/etc/apt")
OVERLAY = Path(__file__).resolve().parent.parent / "scripts" / "guest"
DEBIAN_SUITES = re.compile(
    r"(oldoldstable|oldstable|stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke)/?"
)
OWN_KERNEL = "pass your own: -kernel IMAGE -initrd FILE -append WORDS"


class GuestError(Exception):
    """The default guest cannot be had; the message says why and what to do, in one line."""


@dataclass(frozen=True)
class Guest:
    """What boots: `kernel` is an uncompressed Image, `firmware_dir` has OpenSBI's fw_dynamic and fw_jump."""

    kernel: Path
    initrd: Path
    append: str
    firmware_dir: Path | None


def default_guest(refresh: bool = False) -> Guest:
    """The default guest, fetched and built where the cache lacks it, or anyway with `refresh`."""
    cache = cache_directory() / "guest"
    parts = None if refresh else current_parts(cache)
    if parts is None:
        with locked(cache):
            # Another run may have fetched it while this one waited.
            parts = (None if refresh else current_parts(cache)) or fetch_parts(cache)
    return Guest(parts / "Image", built_initrd(parts), APPEND, parts / "firmware")


def run_script(script: str, append: str = APPEND) -> str:
    """`append` with the word that makes the guest run `script`, print its exit status and power down."""
    line = f"{append} run={base64.b64encode(script.encode()).decode()}"
    if len(line) >= COMMAND_LINE_SIZE:
        raise GuestError(
            f"a kernel command line of {len(line)} characters: {COMMAND_LINE_SIZE - 1} at most; "
            "put the script into the initrd with smp.initramfs.overlay and run it from there"
        )
    return line


# ---- the cache: guest/current links to guest/parts-XXXX, which holds
# manifest.json, Image, config, busybox, firmware/, modules/, initramfs-DIGEST.cpio.gz


def current_parts(cache: Path) -> Path | None:
    """The parts fetched last, if they are what this version of Hartbeat would fetch."""
    try:
        parts = (cache / "current").resolve(strict=True)
        manifest = json.loads((parts / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return parts if manifest.get("recipe") == _recipe() else None


def _recipe() -> str:
    """Names what is kept of which packages: a digest of the choices above."""
    choices = (
        PARTS_FORMAT,
        SUITE,
        ARCHITECTURE,
        KERNEL_PACKAGE,
        PACKAGES,
        BOOT_MODULES,
        MORE_MODULES,
        FIRMWARE,
    )
    return hashlib.sha256(repr(choices).encode()).hexdigest()


def fetch_parts(cache: Path) -> Path:
    """Fetches the packages and makes their parts the current ones; the caller has the cache's lock."""
    for left_by_a_killed_run in cache.glob("tmp-*"):
        shutil.rmtree(left_by_a_killed_run)
    work = Path(tempfile.mkdtemp(prefix="tmp-", dir=cache))
    try:
        apt = Apt(work / "apt", debian_mirror())
        step(f"reading the package lists of Debian {SUITE} ({ARCHITECTURE})")
        apt.update()
        kernel = apt.kernel_package()
        step(f"fetching {kernel}, {', '.join(PACKAGES)}")
        apt.download(kernel, *PACKAGES)
        step("unpacking the packages")
        packages = apt.extract(work / "root")
        parts = keep_parts(work / "root", work / "parts", packages)
        final = cache / work.name.replace("tmp-", "parts-", 1)
        parts.rename(final)
    finally:
        shutil.rmtree(work)
    _make_current(cache, final)
    return final


def _make_current(cache: Path, parts: Path) -> None:
    # The one before stays: a machine may be running from it, and reads it again when it reboots.
    kept = {parts.name, (cache / "current").resolve().name}
    link = cache / "current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(parts.name)
    link.replace(cache / "current")
    for old in cache.glob("parts-*"):
        if old.name not in kept:
            shutil.rmtree(old)


def keep_parts(root: Path, parts: Path, packages: list[str]) -> Path:
    """Copies what the guest is made of from the unpacked packages in `root` to `parts`."""
    (release,) = (path.name for path in (root / "usr/lib/modules").iterdir())
    tree = root / "usr/lib/modules" / release
    (parts / "firmware").mkdir(parents=True)
    (parts / "Image").write_bytes(plain_image((root / "boot" / f"vmlinux-{release}").read_bytes()))
    shutil.copy(root / "boot" / f"config-{release}", parts / "config")
    shutil.copy(root / "usr/bin/busybox", parts / "busybox")
    for name in FIRMWARE:
        shutil.copy(root / OPENSBI / name, parts / "firmware" / name)
    for path in initramfs.module_files(tree, BOOT_MODULES + MORE_MODULES):
        kept = parts / "modules" / path.relative_to(tree)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kept)
    shutil.copy(tree / "modules.builtin", parts / "modules")
    manifest = {"recipe": _recipe(), "release": release, "packages": packages}
    (parts / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return parts


def plain_image(data: bytes) -> bytes:
    """The RISC-V Image in `data`: as it is, gzipped, or in an EFI zboot wrapper.

    Header: Linux Documentation/arch/riscv/boot-image-header.rst; zboot: its efi/libstub/zboot-header.S.
    """
    if data[4:8] == b"zimg":
        offset, size = struct.unpack_from("<II", data, 8)
        method = data[24:32].split(b"\0")[0]
        if method != b"gzip":
            raise GuestError(f"the kernel is compressed with {method.decode()}, not gzip: {OWN_KERNEL}")
        data = data[offset : offset + size]
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[48:56] != b"RISCV\0\0\0" or data[56:60] != b"RSC\x05":
        raise GuestError(f"the kernel package holds no RISC-V Image (starts {data[:8].hex()}): {OWN_KERNEL}")
    return data


def built_initrd(parts: Path) -> Path:
    """The initramfs of `parts` and of the files in scripts/guest; built when either changed."""
    files = overlay_files()
    digest = hashlib.sha256()
    for path in (Path(__file__), Path(initramfs.__file__)):
        digest.update(path.read_bytes())
    for name, data, permissions in files:
        digest.update(b"%s %o %d\n" % (name.encode(), permissions, len(data)) + data)
    initrd = parts / f"initramfs-{digest.hexdigest()[:16]}.cpio.gz"
    if not initrd.exists():
        with locked(parts.parent):
            step("building the initramfs")
            _write_atomically(initrd, gzip.compress(initramfs.cpio(initrd_entries(parts, files)), 9, mtime=0))
    return initrd


def overlay_files() -> list[tuple[str, bytes, int]]:
    """(path, contents, permissions) of the guest's own files, sorted."""
    if not (OVERLAY / "init").exists():
        raise GuestError(f"{OVERLAY}/init: no such file; run Hartbeat from its source tree")
    return [
        # Only the executable bit counts: the others depend on the umask of the checkout.
        (
            path.relative_to(OVERLAY).as_posix(),
            path.read_bytes(),
            0o755 if os.access(path, os.X_OK) else 0o644,
        )
        for path in sorted(OVERLAY.rglob("*"))
        if path.is_file()
    ]


def initrd_entries(parts: Path, files: list[tuple[str, bytes, int]]) -> list[initramfs.Entry]:
    folders = ("bin", "sbin", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc")
    entries = [initramfs.directory(path) for path in folders]
    entries += [
        # The kernel opens /dev/console for init before anything is mounted.
        initramfs.character_device("dev/console", 5, 1),
        initramfs.character_device("dev/null", 1, 3, 0o666),
        initramfs.file("bin/busybox", (parts / "busybox").read_bytes(), 0o755),
        initramfs.symlink("bin/sh", "busybox"),
    ]
    entries += [initramfs.file(path, data, permissions) for path, data, permissions in files]
    return entries + _module_entries(parts)


def _module_entries(parts: Path) -> list[initramfs.Entry]:
    tree = parts / "modules"
    release = json.loads((parts / "manifest.json").read_text())["release"]
    at_boot = set(initramfs.module_files(tree, BOOT_MODULES + SHARE_MODULES + ROOT_MODULES))
    modules = []
    for path in initramfs.module_files(tree, BOOT_MODULES + MORE_MODULES):
        module = initramfs.read_module(tree, path)
        modules.append(module.quick_to_load() if path in at_boot else module)
    contents = {module.path: module.data for module in modules}
    contents |= {name: text.encode() for name, text in initramfs.module_index(modules).items()}
    contents["modules.builtin"] = (tree / "modules.builtin").read_bytes()
    return [initramfs.file(f"lib/modules/{release}/{path}", data) for path, data in contents.items()]


def _write_atomically(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Makes the folder if need be; nobody else changes it meanwhile."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step(f"waiting for another run to finish with {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def step(what: str) -> None:
    """Say what takes its time now."""
    print(f"hartbeat: {what}", file=sys.stderr, flush=True)


# ---- apt


def debian_mirror(etc: Path = SOURCES) -> str:
    """The address of Debian's main archive, as this machine's apt is configured to reach it."""
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for path in files:
        if not path.is_file() or path.suffix not in (".list", ".sources"):
            continue
        parse = one_line_sources if path.suffix == ".list" else deb822_sources
        for uri, suite, components in parse(path.read_text(errors="replace")):
            if DEBIAN_SUITES.fullmatch(suite) and "main" in components:
                return uri
    raise GuestError(
        f"{etc}: no apt source of Debian main, where the default guest comes from; add one, or {OWN_KERNEL}"
    )


Source = tuple[str, str, list[str]]  # address, suite, components


def one_line_sources(text: str) -> Iterator[Source]:
    """sources.list(5), one-line style: `deb [option=value ...] uri suite component ...`."""
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.split("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb":
            yield words[1], words[2], words[3:]


def deb822_sources(text: str) -> Iterator[Source]:
    """sources.list(5), deb822 style: stanzas of `Types`, `URIs`, `Suites`, `Components`, `Enabled`."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        unfolded = re.sub(r"\n[ \t]+", " ", stanza)
        fields = {key.lower(): value for key, value in re.findall(r"(?m)^([\w-]+):[ \t]*(.*)$", unfolded)}
        types, uris, suites, components = (
            fields.get(key, "").split() for key in ("types", "uris", "suites", "components")
        )
        if "deb" in types and fields.get("enabled", "yes").strip().lower() not in ("no", "false", "0"):
            yield from ((uri, suite, components) for uri in uris for suite in suites)


def keyring() -> Path:
    """The keys that Debian signs its archive with, as this machine has them."""
    found = next((path for path in KEYRINGS if path.exists()), None)
    if found is None:
        raise GuestError(f"{KEYRINGS[0]}: no such file; apt-get install debian-archive-keyring")
    return found


APT_CONF = """\
// The machine's own configuration stays in force for how to reach the mirror; its hooks are not for us.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
// The user that apt drops to when it runs as root cannot enter a private cache directory.
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{state}";
Dir::State::lists "{state}/lists";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
Dir::Cache::archives "{state}/archives";
Dir::Etc::sourcelist "{state}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


class Apt:
    """apt with its whole state in the directory `state`, for one source: main of SUITE at `mirror`."""

    def __init__(self, state: Path, mirror: str, architecture: str = ARCHITECTURE) -> None:
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise GuestError(f"{tool}: not found; the default guest comes from Debian through apt: {OWN_KERNEL}")
        for folder in ("lists/partial", "archives/partial", "cache", "debs"):
            (state / folder).mkdir(parents=True)
        (state / "status").touch()
        source = f"deb [arch={architecture} signed-by={keyring()}] {mirror} {SUITE} main\n"
        (state / "sources.list").write_text(source)
        (state / "apt.conf").write_text(APT_CONF.format(architecture=architecture, state=state))
        self.state = state

    def update(self) -> None:
        # Without Error-Mode, apt calls a list that it could not fetch a warning.
        self._run("apt-get", "-o", "APT::Update::Error-Mode=any", "update")

    def kernel_package(self) -> str:
        """The package of the kernel itself, which KERNEL_PACKAGE depends on."""
        shown = self._run("apt-cache", "show", KERNEL_PACKAGE)
        match = re.search(rf"(?m)^Depends:.*?\b(linux-image-\d[^ ,]*-{ARCHITECTURE})\b", shown)
        if match is None:
            raise GuestError(f"{KERNEL_PACKAGE}: depends on no kernel in Debian {SUITE}; {OWN_KERNEL}")
        return match[1]

    def download(self, *packages: str) -> None:
        self._run("apt-get", "download", *packages)

    def download_with_dependencies(self, *packages: str) -> None:
        """The packages and all that they depend on: nothing counts as installed."""
        # The lock of dpkg is not needed, and root's.
        options = ("-o", "Debug::NoLocking=true", "-o", f"Dir::Cache::archives={self.state / 'debs'}")
        self._run("apt-get", *options, "install", "-y", "--download-only", "--no-install-recommends", *packages)

    def extract(self, root: Path) -> list[str]:
        """Unpacks all packages downloaded into `root`; their file names, sorted."""
        packages = sorted((self.state / "debs").glob("*.deb"))
        for package in packages:
            _checked(["dpkg-deb", "--extract", str(package), str(root)], cwd=self.state)
        return [package.name for package in packages]

    def _run(self, tool: str, *arguments: str) -> str:
        command = [tool, "-q", "-c", str(self.state / "apt.conf"), *arguments]
        return _checked(command, cwd=self.state / "debs")


def _checked(command: list[str], cwd: Path) -> str:
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        # apt's first error names the cause; what follows is its consequence.
        errors = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
        reason = (errors or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0].strip()
        action = " ".join([Path(command[0]).name, *(word for word in command[1:] if word == "update")])
        raise GuestError(f"{action}: {reason}; try again when apt works here, or {OWN_KERNEL}")
    return done.stdout


# ---- the emulator's command line


def boot_options(options: Sequence[str], guest: Callable[[], Guest] = default_guest) -> list[str]:
    """`options` of `hartbeat`, completed so that the default guest boots unless they name what boots.

    -kernel and the file of a -bios do; -drive does not, for no firmware here boots from a disk.
    """
    given = {"-" + word.lstrip("-").split("=")[0] for word in options if word.startswith("-")}
    named = given & {"-kernel", "-h", "-help", "-version"}
    if named or ("-bios" in given and "default" not in options):
        return list(options)
    chosen = guest()
    defaults = DEFAULTS | {
        "-kernel": str(chosen.kernel),
        "-initrd": str(chosen.initrd),
        "-append": chosen.append,
    }
    missing = [word for name, value in defaults.items() if name not in given for word in (name, value)]
    nographic = [] if given & {"-nographic", "-serial", "-display"} else ["-nographic"]
    return [*nographic, *missing, *options]


USAGE = """\
usage: python -m smp.guest [--refresh]         fetch the default guest if need be and print its paths
       python -m smp.guest boot [OPTION ...]   boot it, or what the emulator's OPTIONs name; with --run COMMAND, run
                                               that in it and end with its exit status
"""


def boot(words: list[str]) -> int:
    """Become the emulator with its options completed; with --run, be it until the command has ended."""
    from smp import cli, guest_run  # which imports this module

    command, others = guest_run.split_run(words)
    if command is not None:
        return guest_run.run(command, others, cli.main)
    if words in (["-h"], ["--help"], ["-help"]) and (status := cli.show(guest_run.HELP)):
        return status
    os.execv(sys.executable, [sys.executable, "-P", "-m", "smp", *boot_options(words)])


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["boot"]:
            return boot(words[1:])
        if words not in ([], ["--refresh"]):
            print(USAGE, end="", file=sys.stderr)
            return 2
        guest = default_guest(refresh=bool(words))
    except GuestError as error:
        print(f"hartbeat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # what a shell calls an end by Ctrl-C; the next run starts over
    except OSError as error:
        print(
            f"hartbeat: {error.filename}: {error.strerror}; set HARTBEAT_CACHE to a writable directory",
            file=sys.stderr,
        )
        return 2
    for field in ("kernel", "initrd", "append", "firmware_dir"):
        print(f"{field:12} {getattr(guest, field)}")
    return 0


if __name__ == "__main__":
    keep_bytecode()
    # As the module that others import it is another one than __main__, with errors of its own.
    from smp import guest

    sys.exit(guest.main())
