"""The default guest's making, without network: apt sources, the cpio archive, modules, command lines."""

import base64
import gzip
import json
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp import guest, initramfs
from smp.guest import Guest, GuestError
from smp.initramfs import Entry, Module

IMAGE = b"MZ".ljust(48, b"\0") + b"RISCV\0\0\0RSC\x05" + b"the kernel"
GUEST = Guest(Path("/k"), Path("/i"), "console=ttyS0", Path("/f"))


# ---- cpio


def unpacked(archive: bytes) -> dict[str, Entry]:
    """A reader of newc archives that knows nothing of the writer; also what padding and order must hold."""
    entries: dict[str, Entry] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        mode, size, rdev, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = archive[offset + 110 : offset + 110 + name_size]
        assert name.endswith(b"\0")
        start = (offset + 110 + name_size + 3) & ~3
        path = name[:-1].decode()
        if path == "TRAILER!!!":
            assert not any(archive[start:])
            return entries
        entries[path] = Entry(path, mode, archive[start : start + size], rdev)
        offset = (start + size + 3) & ~3


names = st.text("abc.-é", min_size=1, max_size=4).filter(lambda name: set(name) != {"."})
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(paths, st.binary(max_size=9)))
def test_an_archive_reads_back_as_what_was_written(contents: dict[str, bytes]) -> None:
    archive = initramfs.cpio(initramfs.file(path, data, 0o640) for path, data in contents.items())
    entries = unpacked(archive)
    for path, data in contents.items():
        assert entries[path] == Entry(path, stat.S_IFREG | 0o640, data)
    assert len(archive) % 512 == 0


@given(st.lists(paths, unique=True))
def test_each_directory_comes_before_what_is_in_it(all_paths: list[str]) -> None:
    order = list(unpacked(initramfs.cpio(initramfs.directory(path) for path in all_paths)))
    for position, path in enumerate(order):
        if "/" in path:
            assert path.rpartition("/")[0] in order[:position]


def test_the_order_of_the_entries_does_not_change_the_archive() -> None:
    entries = [initramfs.file("b", b"1"), initramfs.symlink("a", "b"), initramfs.directory("d")]
    assert initramfs.cpio(entries) == initramfs.cpio(reversed(entries))


def test_a_device_node_needs_no_root() -> None:
    console = unpacked(initramfs.cpio([initramfs.character_device("dev/console", 5, 1)]))["dev/console"]
    assert stat.S_ISCHR(console.mode)
    assert console.rdev == (5, 1)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_gnu_cpio_reads_the_archive() -> None:
    entries = [initramfs.file("etc/motd", b"hello\n"), initramfs.symlink("bin/sh", "busybox")]
    listing = subprocess.run(["cpio", "-t", "--quiet"], input=initramfs.cpio(entries), capture_output=True, check=True)
    assert listing.stdout.split() == [b"bin", b"bin/sh", b"etc", b"etc/motd"]
    assert listing.stderr == b""


def test_an_overlay_follows_the_initrd_at_a_word_boundary() -> None:
    combined = initramfs.overlay(b"\x1f\x8b123", {"/test.sh": b"echo hi"})
    assert combined[:8] == b"\x1f\x8b123\0\0\0"
    assert unpacked(combined[8:])["test.sh"].data == b"echo hi"


# ---- modules


def module(name: str, *depends: str) -> Module:
    return Module(f"kernel/{name}.ko", b"", depends, (f"virtio:{name}",))


def test_a_module_is_listed_with_all_it_depends_on_deepest_last() -> None:
    index = initramfs.module_index(
        [module("top", "left", "right"), module("left", "low"), module("right", "low"), module("low")]
    )
    rows = dict(line.split(":") for line in index["modules.dep"].splitlines())
    listed = [Path(path).stem for path in rows["kernel/top.ko"].split()]
    assert sorted(listed) == ["left", "low", "right"]
    assert listed[-1] == "low"
    assert rows["kernel/low.ko"] == ""
    assert "alias virtio:left left\n" in index["modules.alias"]


def test_a_module_is_named_as_the_kernel_names_it() -> None:
    assert initramfs.module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz") == "virtio_rng"


def test_a_signature_is_taken_off_and_nothing_else() -> None:
    elf = b"\x7fELF module"
    signature = b"s" * 264
    signed = elf + signature + struct.pack(">5B3xI", 0, 0, 2, 0, 0, len(signature)) + b"~Module signature appended~\n"
    assert initramfs.unsigned(signed) == elf
    assert initramfs.unsigned(elf) == elf


def test_an_unknown_compression_of_modules_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"loop\.ko\.zst"):
        initramfs.plain_module("loop.ko.zst", b"")


# ---- apt sources

DEB822 = """\
# the archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
# why a comment here is allowed: deb822
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb
URIs:
 http://first.example/x
 http://second.example/x
Suites: trixie
Components: contrib
"""


def test_deb822_sources_are_read() -> None:
    sources = list(guest.deb822_sources(DEB822))
    assert sources == [
        ("http://mirror.example/debian", "bookworm", ["main"]),
        ("http://mirror.example/debian", "bookworm-updates", ["main"]),
        ("http://first.example/x", "trixie", ["contrib"]),
        ("http://second.example/x", "trixie", ["contrib"]),
    ]


def test_one_line_sources_are_read() -> None:
    text = """
    # deb http://off.example/debian trixie main
    deb-src http://source.example/debian trixie main
    deb [arch=amd64 signed-by=/x.gpg] https://mirror.example/debian/ trixie main contrib # ours
    """
    assert list(guest.one_line_sources(text)) == [("https://mirror.example/debian/", "trixie", ["main", "contrib"])]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_the_mirror_is_the_one_that_serves_debian_main(etc: Path) -> None:
    (etc / "sources.list").write_text(
        "deb http://other.example/apt stable-tools main\n"
        "deb http://mirror.example/debian-security bookworm-security main\n"
        "deb http://mirror.example/debian-security bookworm/updates main\n"
        "deb http://mirror.example/debian bookworm-backports main\n"
    )
    (etc / "sources.list.d" / "a.sources.disabled").write_text(DEB822.replace("mirror", "wrong"))
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822)
    assert guest.debian_mirror(etc) == "http://mirror.example/debian"


def test_without_debian_main_the_error_says_what_to_do(etc: Path) -> None:
    (etc / "sources.list").write_text("deb http://archive.example/ubuntu noble main\n")
    with pytest.raises(GuestError, match=r"no apt source of Debian main.*-kernel IMAGE"):
        guest.debian_mirror(etc)


def test_without_apt_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestError, match=r"apt-get: not found.*-kernel IMAGE"):
        guest.Apt(tmp_path / "apt", "http://mirror.example/debian")


def test_a_failed_command_is_told_by_its_first_error(tmp_path: Path) -> None:
    script = "echo W: noise >&2; echo 'E: Failed to fetch' >&2; echo 'E: Some index files' >&2; exit 100"
    with pytest.raises(GuestError, match=r"^sh: Failed to fetch; try again"):
        guest._checked(["sh", "-c", script], tmp_path)


# ---- kernel images


def zboot(payload: bytes, method: bytes = b"gzip") -> bytes:
    return b"MZ\0\0zimg" + struct.pack("<II8x", 64, len(payload)) + method.ljust(40, b"\0") + payload + b"tail"


PACKED = {"plain": IMAGE, "gzip": gzip.compress(IMAGE), "zboot": zboot(gzip.compress(IMAGE))}


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
def test_an_image_is_found_however_it_is_packed(packed: bytes) -> None:
    assert guest.plain_image(packed) == IMAGE


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(GuestError, match="no RISC-V Image"):
        guest.plain_image(b"\x7fELF" + bytes(100))
    with pytest.raises(GuestError, match="zstd22, not gzip"):
        guest.plain_image(zboot(b"", b"zstd22"))


# ---- the cache


@pytest.fixture
def fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A cache in tmp_path, filled by a stand-in for the network; the list grows with each fetch."""
    made: list[Path] = []

    def fetch(cache: Path) -> Path:
        parts = cache / f"parts-{len(made)}"
        (parts / "modules").mkdir(parents=True)
        (parts / "busybox").write_bytes(b"busybox")
        (parts / "modules" / "modules.builtin").write_bytes(b"")
        (parts / "manifest.json").write_text(json.dumps({"recipe": guest._recipe(), "release": "6.12"}))
        made.append(parts)
        guest._make_current(cache, parts)
        return parts

    monkeypatch.setenv("HARTBEAT_CACHE", str(tmp_path))
    monkeypatch.setattr(guest, "fetch_parts", fetch)
    return made


def test_a_guest_is_fetched_once(fetches: list[Path]) -> None:
    first = guest.default_guest()
    assert guest.default_guest() == first
    assert len(fetches) == 1
    entries = unpacked(gzip.decompress(first.initrd.read_bytes()))
    assert entries["init"].data == (guest.OVERLAY / "init").read_bytes()
    assert {"etc/inittab", "etc/session", "lib/modules/6.12/modules.dep", "proc", "dev/null"} <= set(entries)
    for path in ("init", "etc/session", "bin/busybox"):
        assert entries[path].mode & 0o111, path


def test_refresh_fetches_again_and_keeps_what_a_running_machine_may_use(fetches: list[Path]) -> None:
    guest.default_guest()
    for number in (1, 2):
        assert guest.default_guest(refresh=True).kernel.parent == fetches[number]
    assert [path.exists() for path in fetches] == [False, True, True]


def test_a_guest_of_another_recipe_is_fetched_again(fetches: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    guest.default_guest()
    monkeypatch.setattr(guest, "SUITE", "forky")
    guest.default_guest()
    assert len(fetches) == 2


def test_a_changed_init_makes_a_new_initrd_from_the_same_parts(
    fetches: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = guest.default_guest()
    overlay = tmp_path / "overlay"
    shutil.copytree(guest.OVERLAY, overlay)
    (overlay / "init").write_bytes(b"#!/bin/sh\n")
    monkeypatch.setattr(guest, "OVERLAY", overlay)
    second = guest.default_guest()
    assert second.initrd != first.initrd
    assert unpacked(gzip.decompress(second.initrd.read_bytes()))["init"].data == b"#!/bin/sh\n"
    assert len(fetches) == 1


def test_a_failure_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARTBEAT_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert guest.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "HARTBEAT_CACHE" in printed.err


def test_an_unknown_argument_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert guest.main(["--refesh"]) == 2
    assert "usage" in capsys.readouterr().err


# ---- command lines


def boot_options(*options: str) -> str:
    return " ".join(guest.boot_options(options, lambda: GUEST))


def test_without_options_the_default_guest_boots() -> None:
    assert boot_options() == "-nographic -smp 4 -m 1G -kernel /k -initrd /i -append console=ttyS0"


def test_an_option_given_replaces_its_default_only() -> None:
    assert boot_options("-smp", "8") == "-nographic -m 1G -kernel /k -initrd /i -append console=ttyS0 -smp 8"
    assert boot_options("--m=2G") == "-nographic -smp 4 -kernel /k -initrd /i -append console=ttyS0 --m=2G"
    assert boot_options("-append", "quiet").count("-append") == 1
    assert "-nographic" not in boot_options("-serial", "pty")


def test_a_disk_is_data_of_the_default_guest() -> None:
    assert "-kernel /k" in boot_options("-drive", "file=disk,format=raw")
    assert "-kernel /k" in boot_options("-bios", "default")


@pytest.mark.parametrize("options", [["-kernel", "X", "-m", "2G"], ["-bios", "fw.bin"], ["-h"], ["--version"]])
def test_options_that_name_what_boots_pass_through(options: list[str]) -> None:
    def no_guest() -> Guest:
        raise AssertionError("the default guest is not needed here")

    assert guest.boot_options(options, no_guest) == options


@given(st.text(max_size=100))
def test_a_script_travels_in_one_word(script: str) -> None:
    word = guest.run_script(script).split()[-1]
    assert base64.b64decode(word.removeprefix("run=")).decode() == script


def test_a_script_longer_than_the_command_line_is_refused() -> None:
    with pytest.raises(GuestError, match=r"1023 at most; .*overlay"):
        guest.run_script("x" * 1000)


def test_the_guests_own_scripts_are_executable_and_parse() -> None:
    for name in ("init", "etc/session"):
        assert os.access(guest.OVERLAY / name, os.X_OK)
        subprocess.run(["sh", "-n", str(guest.OVERLAY / name)], check=True)
