"""Images of Debian: dpkg's database of what is only unpacked, the ext4 image, and what is asked for. No network.

scripts/debian-check makes a whole one and boots it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smp import debian, debian_tree
from smp.debian_disk import Disk, ext4_tool, reason_in, run_tool
from smp.guest import GuestError

ROOT = Path(__file__).resolve().parent.parent
CONTROL = """\
Package: {name}
Version: 1.0-1
Architecture: {architecture}
Maintainer: Nobody <nobody@example.org>
Description: a package
 of the tests
{more}"""


def build_deb(folder: Path, name: str, control: dict[str, str], files: dict[str, str], more: str = "") -> None:
    """A package as dpkg-deb makes it, in the folder."""
    tree = folder.parent / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    architecture = "riscv64" if more else "all"
    (tree / "DEBIAN/control").write_text(CONTROL.format(name=name, architecture=architecture, more=more))
    for where, texts in (("DEBIAN", control), (".", files)):
        for path, text in texts.items():
            made = tree / where / path
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(text)
            made.chmod(0o755 if path in debian_tree.SCRIPTS else 0o644)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(folder / f"{name}.deb")]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages as mmdebstrap leaves them: extracted, their archives where apt puts them, an empty database."""
    made, archives = tmp_path / "tree", tmp_path / "tree" / debian_tree.ARCHIVES
    for folder in (archives, made / "var/lib/dpkg", made / "var/lib/apt/lists", made / "etc/apt/apt.conf.d"):
        folder.mkdir(parents=True)
    conf = {"conffiles": "/etc/one.conf\n", "postinst": "#!/bin/sh\nexit 0\n"}
    conf["triggers"] = "# why\ninterest-noawait /usr/share/one\ninterest one-word\nactivate ldconfig\n"
    build_deb(archives, "one", conf, {"etc/one.conf": "set\n", "usr/share/one/a file": "a"})
    build_deb(archives, "libtwo", {"triggers": "interest one-word\n"}, {"usr/lib/libtwo.so": ""}, "Multi-Arch: same\n")
    for deb in archives.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(made)], check=True)
    (made / "etc/resolv.conf").write_text("of the host\n")
    (made / "etc/hostname").write_text("of the host\n")
    (made / debian_tree.HOST_APT).write_text("of the host\n")
    return made


def dpkg(tree: Path, *words: str) -> str:
    database = tree / "var/lib/dpkg"
    return subprocess.run(
        ["dpkg-query", f"--admindir={database}", *words], check=True, capture_output=True, text=True
    ).stdout


def test_dpkg_takes_the_packages_for_unpacked(tree: Path) -> None:
    packages = [debian_tree.read_package(deb) for deb in sorted((tree / debian_tree.ARCHIVES).glob("*.deb"))]
    debian_tree.write_database(packages, tree / "var/lib/dpkg", tree)
    shown = dpkg(tree, "--show", "--showformat=${binary:Package} ${Status} ${Version} ${Conffiles}\n")
    one, two = sorted(shown.replace("\n /", " /").splitlines(), reverse=True)
    md5 = hashlib.md5(b"set\n").hexdigest()
    assert one.split() == ["one", "install", "ok", "unpacked", "1.0-1", "/etc/one.conf", md5]
    assert two.split() == ["libtwo:riscv64", "install", "ok", "unpacked", "1.0-1"]
    assert "/usr/share/one/a file\n" in dpkg(tree, "--listfiles", "one")
    assert dpkg(tree, "--search", "/usr/lib/libtwo.so") == "libtwo:riscv64: /usr/lib/libtwo.so\n"
    assert os.access(tree / "var/lib/dpkg/info/one.postinst", os.X_OK)


def test_triggers_are_noted_as_dpkg_notes_them(tree: Path) -> None:
    packages = [debian_tree.read_package(deb) for deb in sorted((tree / debian_tree.ARCHIVES).glob("*.deb"))]
    found = debian_tree.interests(packages)
    assert found == {"File": "/usr/share/one one/noawait\n", "one-word": "libtwo:riscv64\none\n"}


def test_an_image_holds_the_packages_and_the_files_of_ours(tree: Path, tmp_path: Path) -> None:
    debian_tree.make_image(tree, tmp_path / "image")
    disk = Disk(tmp_path / "image")
    disk.check()
    assert disk.read("/etc/one.conf") == "set\n"
    assert "install ok unpacked" in disk.read("/var/lib/dpkg/status")
    assert disk.read("/setup") == (debian_tree.OVERLAY / "setup").read_text()
    assert "0755" in run_tool(["debugfs", "-R", "stat /setup", str(disk.path)])
    left = run_tool(["debugfs", "-R", f"ls /{debian_tree.ARCHIVES}", str(disk.path)])
    assert ".deb" not in left
    for name in ("/etc/hostname", f"/{debian_tree.HOST_APT}"):
        assert disk.read(name) == ""


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "disk"
    run_tool(["mke2fs", "-q", "-t", "ext4", str(path), "8M"])
    return Disk(path)


def test_files_are_written_to_an_image_with_owner_and_mode(disk: Disk) -> None:
    disk.mkdir("/root", 0o700)
    disk.write("/root/a", "first\n")
    disk.write("/root/a", "then\n", 0o640, group=42)
    assert disk.read("/root/a") == "then\n"
    shown = run_tool(["debugfs", "-R", "stat /root/a", str(disk.path)])
    assert "Mode:  0640" in shown and "User:     0   Group:    42" in shown
    assert "Mode:  0700" in run_tool(["debugfs", "-R", "stat /root", str(disk.path)])
    disk.check()


def test_a_write_that_failed_is_an_error(disk: Disk) -> None:
    with pytest.raises(GuestError, match="is the image full"):
        disk.write("/large", "x" * (16 << 20))
    with pytest.raises(GuestError, match="could not write /none/a"):
        disk.write("/none/a", "text")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("I: update\nE: no such host\nE: apt failed\n", "no such host"),
        (
            "I: hook\nmke2fs: no space\nE: setup failed: E: command failed: a b\nE: mmdebstrap failed\n",
            "mke2fs: no space",
        ),
        ("one\ntwo\n\n", "two"),
        ("", "no message"),
    ],
)
def test_a_tool_that_failed_is_quoted_with_its_reason(said: str, why: str) -> None:
    assert reason_in(said) == why
    with pytest.raises(GuestError, match=f"sh failed with status 3: {why}"):
        run_tool(["sh", "-c", 'printf %s "$1" >&2; exit 3', "sh", said])


def test_an_image_grows_and_does_not_shrink(disk: Disk) -> None:
    disk.resize(32 << 20)
    assert disk.path.stat().st_size == 32 << 20
    assert "Block count:              32768" in run_tool(["debugfs", "-R", "stats", str(disk.path)])
    with pytest.raises(GuestError, match="needs at least 32M"):
        disk.resize(16 << 20)


def personal(disk: Disk, *words: str) -> None:
    debian.personalize(disk, debian.parsed([*words, "image"]))


@pytest.fixture
def system(disk: Disk) -> Disk:
    for folder in ("/etc", "/etc/apt", "/root"):
        disk.mkdir(folder, 0o755)
    disk.write("/etc/hosts", "127.0.0.1 localhost\n")
    disk.write("/etc/shadow", "root::20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\n", 0o640, group=42)
    return disk


def test_password_key_and_name_are_put_on_a_copy(system: Disk, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA me@here\n")
    personal(system, "--password", "a 'word'", "--ssh-key", str(tmp_path / "key.pub"), "--hostname", "mule")
    assert system.read("/etc/hostname") == "mule\n" and "127.0.1.1 mule\n" in system.read("/etc/hosts")
    assert system.read("/root/.ssh/authorized_keys") == "ssh-ed25519 AAAA me@here\n"
    hashed, daemon = (line.split(":")[1] for line in system.read("/etc/shadow").splitlines())
    salt = hashed.split("$")[2]
    assert run_tool(["openssl", "passwd", "-6", "-salt", salt, "-stdin"], given="a 'word'\n").strip() == hashed
    assert daemon == "*"
    assert " trixie main" in system.read("/etc/apt/sources.list")


def test_without_a_password_there_is_none(system: Disk) -> None:
    personal(system)
    assert system.read("/etc/shadow").startswith("root::")
    assert system.read("/root/.ssh/authorized_keys") == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hostname", "a b", "i"], "--hostname a b: not a host name; use a-z"),
        (["--ssh-key", "none.pub", "i"], "--ssh-key none.pub: No such file or directory; name"),
        (["--ssh-key", "key", "i"], "--ssh-key key: not a public key; name the .pub"),
        (["there"], "there: is there already; remove it"),
        (["no/i"], "no/i: its folder does not exist; make it"),
        (["--size", "12x", "i"], "'12x' is not a size; write it like 512M"),
        (["--include", "a;b", "i"], "'a;b' is not the name of a package"),
    ],
)
def test_what_can_not_be_is_one_line(words: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "smp.debian", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and says in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "there"]


def test_what_is_missing_on_the_host_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian, "ext4_tool", lambda name: None if name == "mmdebstrap" else ext4_tool(name))
    with pytest.raises(GuestError, match="mmdebstrap: not found; apt install mmdebstrap"):
        debian.check(debian.parsed([str(tmp_path / "i")]))


def test_a_folder_of_others_is_named_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Not by the mode of a folder: root, as whom the tests may run, writes anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(GuestError, match="i: you can't write to its folder; name a file in one of yours"):
        debian.check(debian.parsed([str(tmp_path / "i")]))


def test_a_base_is_named_for_all_that_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {debian.base_name(packages, mirror) for packages in (["a"], ["a", "b"]) for mirror in ("m:/1", "m:/2")}
    assert len(named) == 4 and len({made for _, made in named}) == 1
    assert debian.base_name(["b", "a"], "m:/1") == (before := debian.base_name(["a", "b"], "m:/1"))
    shutil.copytree(debian_tree.OVERLAY, tmp_path / "overlay")
    monkeypatch.setattr(debian_tree, "OVERLAY", tmp_path / "overlay")
    (tmp_path / "overlay/setup").write_text("#!/bin/sh\n")
    after = debian.base_name(["a", "b"], "m:/1")
    assert after[0] == before[0] and after[1] != before[1]


def test_a_base_is_made_once_and_replaces_its_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARTBEAT_CACHE", str(tmp_path))
    monkeypatch.setattr(debian.guest, "debian_mirror", lambda: "m:/1")
    made: list[Path] = []
    monkeypatch.setattr(debian, "extract", lambda packages, mirror, image: image.write_text(" ".join(packages)))
    monkeypatch.setattr(debian, "configure", made.append)
    asked, _ = debian.base_name(["a"], "m:/1")
    for name in (f"base-{asked}-00000000.img", "base-00000000-00000000.img", "tmp-killed/disk.img"):
        (tmp_path / "debian" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "debian" / name).write_text("old")
    base = debian.base_image(["a"], refresh=False)
    assert base.read_text() == "a" and debian.base_image(["a"], refresh=False) == base and len(made) == 1
    assert sorted(path.name for path in base.parent.glob("*-*")) == sorted(["base-00000000-00000000.img", base.name])
    debian.base_image(["a"], refresh=True)
    assert len(made) == 2
