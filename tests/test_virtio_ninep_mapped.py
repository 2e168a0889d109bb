"""virtio-9p with security_model=mapped-xattr: owners, modes and special files are attributes, as QEMU has them."""

import errno
import os
import stat
from pathlib import Path

import pytest
from ninep_client import O_RDWR, Client, NinepError

from virtio.queue import Ram


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hosts").write_bytes(b"made on the host\n")
    try:
        os.setxattr(tmp_path / "hosts", "user.x", b"x")
        os.removexattr(tmp_path / "hosts", "user.x")
    except OSError:
        pytest.skip("no extended attributes in the folder for temporary files")
    return tmp_path


@pytest.fixture
def client(ram: Ram, folder: Path) -> Client:
    return Client(ram, folder, "mapped-xattr", uid=1001)


def virtfs(path: Path) -> dict[str, int]:
    """The attributes that QEMU reads: little-endian numbers of the C types' sizes."""
    sizes = {"uid": 4, "gid": 4, "mode": 4, "rdev": 8}
    found = {
        name: os.getxattr(path, f"user.virtfs.{name}") for name in sizes if f"user.virtfs.{name}" in os.listxattr(path)
    }
    assert {name: len(value) for name, value in found.items()} == {name: sizes[name] for name in found}
    return {name: int.from_bytes(value, "little") for name, value in found.items()}


def told(client: Client, name: bytes) -> tuple[int, int, int, int]:
    found = client.getattr(client.walk(name))
    return found["mode"], found["uid"], found["gid"], found["rdev"]


def test_a_new_file_is_the_hosts_users_own(client: Client, folder: Path) -> None:
    client.create(b"new", mode=0o4751, gid=1002)
    client.mkdir(b"dir", mode=0o1777, gid=7)
    assert virtfs(folder / "new") == {"uid": 1001, "gid": 1002, "mode": stat.S_IFREG | 0o4751}
    assert virtfs(folder / "dir") == {"uid": 1001, "gid": 7, "mode": stat.S_IFDIR | 0o1777}
    assert (folder / "new").stat().st_mode == stat.S_IFREG | 0o600
    assert (folder / "dir").stat().st_mode == stat.S_IFDIR | 0o700
    assert (folder / "new").stat().st_uid == os.geteuid()
    assert told(client, b"new") == (stat.S_IFREG | 0o4751, 1001, 1002, 0)


def test_a_file_of_the_host_is_shown_as_it_is(client: Client, folder: Path) -> None:
    own = (folder / "hosts").stat()
    assert told(client, b"hosts") == (own.st_mode, own.st_uid, own.st_gid, 0)
    os.symlink("hosts", folder / "link")
    assert client.readlink(client.walk(b"link")) == b"hosts"
    assert stat.S_ISLNK(told(client, b"link")[0])


def test_setattr_changes_attributes_only(client: Client, folder: Path) -> None:
    before = (folder / "hosts").stat()
    fid = client.walk(b"hosts")
    client.setattr(fid, 1, stat.S_IFREG | 0o6711)
    assert virtfs(folder / "hosts") == {"mode": stat.S_IFREG | 0o6711}
    client.setattr(fid, 4, gid=55)
    client.setattr(fid, 2, uid=66)
    after = (folder / "hosts").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert told(client, b"hosts")[:3] == (stat.S_IFREG | 0o6711, 66, 55)


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_special_files_are_regular_ones(client: Client, folder: Path, kind: int) -> None:
    client.mknod(b"node", kind | 0o620, 4, 300)
    assert (folder / "node").stat().st_mode == stat.S_IFREG | 0o600
    assert told(client, b"node") == (kind | 0o620, 1001, 0, os.makedev(4, 300))
    assert virtfs(folder / "node")["rdev"] == os.makedev(4, 300)
    with pytest.raises(NinepError, match="No such device"):
        client.open(b"node")


def test_folders_and_links_are_made_by_their_own_messages(client: Client, folder: Path) -> None:
    for kind in (stat.S_IFDIR, stat.S_IFLNK):
        with pytest.raises(NinepError, match="Invalid"):
            client.mknod(b"node", kind | 0o700)
    assert os.listdir(folder) == ["hosts"]


def test_links_are_regular_files(client: Client, folder: Path) -> None:
    client.symlink(b"link", b"/etc/passwd")
    assert (folder / "link").read_bytes() == b"/etc/passwd"
    assert virtfs(folder / "link")["mode"] == stat.S_IFLNK | 0o777
    fid = client.walk(b"link")
    found = client.getattr(fid)
    assert (found["type"], found["size"]) == (2, 11)
    assert client.readlink(fid) == b"/etc/passwd"
    with pytest.raises(NinepError, match="symbolic"):
        client.open(b"link", flags=O_RDWR)
    client.link(fid, b"second")
    assert client.readlink(client.walk(b"second")) == b"/etc/passwd"


def test_a_folders_listing_leaves_the_kind_to_getattr(client: Client) -> None:
    client.symlink(b"link", b"x")
    kinds = {entry[1] for entry in client.readdir(client.open())}
    assert kinds == {0}


def test_the_attributes_are_hidden_from_the_guest(client: Client, folder: Path) -> None:
    client.create(b"new")
    fid = client.walk(b"new")
    client.set_xattr(fid, b"user.mine", b"1")
    client.set_xattr(fid, b"system.posix_acl_access", b"acl")
    assert sorted(client.xattr(fid).split(b"\0")) == [b"", b"system.posix_acl_access", b"user.mine"]
    assert os.getxattr(folder / "new", "user.virtfs.system.posix_acl_access") == b"acl"
    assert client.xattr(fid, b"system.posix_acl_access") == b"acl"
    for name in (b"user.virtfs.uid", b"user.virtfs.", b"user.virtfs.system.posix_acl_access"):
        with pytest.raises(NinepError) as caught:
            client.xattr(fid, name)
        assert caught.value.errno == errno.ENODATA
        for value in (b"\0\0\0\0", b""):
            with pytest.raises(NinepError) as caught:
                client.set_xattr(fid, name, value)
            assert caught.value.errno == errno.EACCES


def test_attributes_of_another_size_count_as_none(client: Client, folder: Path) -> None:
    os.setxattr(folder / "hosts", "user.virtfs.uid", b"short"[:3])
    os.setxattr(folder / "hosts", "user.virtfs.gid", (5).to_bytes(4, "little"))
    assert told(client, b"hosts")[1:3] == ((folder / "hosts").stat().st_uid, 5)


def test_what_can_not_be_mapped_is_not_made(client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "setxattr", full)
    for attempt in (
        lambda: client.create(b"new"),
        lambda: client.mkdir(b"new"),
        lambda: client.symlink(b"new", b"x"),
        lambda: client.mknod(b"new", stat.S_IFIFO),
    ):
        with pytest.raises(NinepError, match="space"):
            attempt()
    assert os.listdir(folder) == ["hosts"]
