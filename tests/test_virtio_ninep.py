"""virtio-9p: every message does to the host's folder what it says, seen from both sides."""

import errno
import fcntl
import os
import random
import socket
import stat
from pathlib import Path
from struct import pack, unpack_from

import pytest
from ninep_client import (
    MSIZE,
    O_APPEND,
    O_EXCL,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    ROOT,
    Client,
    client,
    open_handles,
    refused,
    s,
)

from virtio.queue import Ram

__all__ = ["client"]

REMOVE_FOLDER = 0x200
MODE, UID, GID, SIZE, ATIME, MTIME, GIVEN_ATIME, GIVEN_MTIME = 1, 2, 4, 8, 16, 32, 128, 256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    (shared / "sub" / "deep").mkdir(parents=True)
    (shared / "file").write_bytes(b"contents\n")
    (shared / "sub" / "deep" / "leaf").write_bytes(b"leaf\n")
    return shared


# The session


def test_the_tag_is_in_the_configuration_space(client: Client) -> None:
    assert client.rig.device.config() == b"\3\0tag"
    assert client.rig.features() & 1


def test_version_agrees_on_the_smaller_size(client: Client) -> None:
    assert client.version(8192) == (8192, b"9P2000.L")
    assert client.version(MSIZE) == (MSIZE, b"9P2000.L")
    assert client.version(1 << 31) == (1 << 20, b"9P2000.L")
    assert client.version(8192, b"9P2000.u")[1] == b"unknown"
    with refused(errno.EINVAL):  # no version was agreed on
        client.attach()
    with refused(errno.EMSGSIZE):
        client.version(4095)


def test_a_version_forgets_all_fids(client: Client) -> None:
    before = open_handles()
    fids = [client.open(b"file") for _ in range(5)]
    client.version()
    with refused(errno.EBADF):
        client.read(fids[0], 0, 1)
    assert open_handles() == before


def test_a_reset_forgets_all_fids(client: Client) -> None:
    before = open_handles()
    for _ in range(5):
        client.open(b"file")
    client.rig.write(0x70, 0)
    assert open_handles() == before


def test_no_authentication_is_needed(client: Client) -> None:
    with refused(errno.EOPNOTSUPP):
        client.call(102, pack("<I", 7) + s(b"u") + s(b"") + pack("<I", 0))


def test_a_flush_is_answered(client: Client) -> None:
    assert client.call(108, pack("<H", 5)) == b""


# Finding


def test_walk_finds_and_getattr_tells_what_stat_does(client: Client, folder: Path) -> None:
    told = client.getattr(client.walk(b"sub", b"deep", b"leaf"))
    own = (folder / "sub/deep/leaf").stat()
    assert (told["mode"], told["size"], told["nlink"]) == (own.st_mode, 5, 1)
    assert (told["uid"], told["gid"], told["path"]) == (own.st_uid, own.st_gid, own.st_ino)
    assert told["mtime"] * 10**9 + told["mtime_ns"] == own.st_mtime_ns
    assert told["type"] == 0 and told["version"] != 0 and told["valid"] == 0x7FF
    assert client.getattr(ROOT)["type"] == 0x80
    assert told["blksize"] % own.st_blksize == 0 and MSIZE // 2 < told["blksize"] < MSIZE


def test_a_walk_that_fails_half_way_makes_no_fid(client: Client) -> None:
    new = client.new()
    answer = client.call(110, pack("<IIH", ROOT, new, 3) + s(b"sub") + s(b"none") + s(b"leaf"))
    assert unpack_from("<H", answer)[0] == 1
    with refused(errno.EBADF):
        client.getattr(new)
    with refused(errno.ENOENT):
        client.walk(b"none")


def test_a_fid_is_cloned_and_replaced(client: Client) -> None:
    fid = client.walk(b"sub")
    assert client.getattr(client.walk(start=fid))["path"] == client.getattr(fid)["path"]
    client.walk(b"deep", start=fid, new=fid)
    assert client.getattr(client.walk(b"leaf", start=fid))["size"] == 5
    with refused(errno.EINVAL):
        client.walk(b"file", new=fid)


def test_version_of_a_qid_changes_with_the_contents(client: Client, folder: Path) -> None:
    fid = client.walk(b"file")
    before = client.getattr(fid)["version"]
    (folder / "file").write_bytes(b"other contents")
    assert client.getattr(fid)["version"] != before


# Reading and writing


@pytest.mark.parametrize("pieces", [1, 7])
def test_data_go_both_ways_in_any_pieces(client: Client, folder: Path, pieces: int) -> None:
    data = random.Random(3).randbytes(300_001)
    step = len(data) // pieces
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    fid = client.create(b"new")
    assert client.write(fid, 0, *parts) == len(data)
    assert (folder / "new").read_bytes() == data
    assert client.read(fid, 5, 200_000) == data[5:200_005]
    assert client.read(fid, 299_000, 200_000) == data[299_000:]
    assert client.read(fid, 400_000, 10) == b""


def test_a_read_takes_what_the_message_may_hold(client: Client) -> None:
    fid = client.create(b"new")
    client.write(fid, 0, b"x" * 20_000)
    client.version(8192)
    client.attach()
    assert len(client.read(client.open(b"new"), 0, 20_000)) == 8192 - 11


def test_open_flags(client: Client, folder: Path) -> None:
    with refused(errno.EBADF):
        client.write(client.open(b"file"), 0, b"x")
    with refused(errno.EBADF):
        client.read(client.open(b"file", flags=O_WRONLY), 0, 1)
    client.write(client.open(b"file", flags=O_WRONLY | O_APPEND), 0, b"more")
    assert (folder / "file").read_bytes() == b"contents\nmore"
    client.open(b"file", flags=O_RDWR | O_TRUNC)
    assert (folder / "file").read_bytes() == b""
    with refused(errno.EINVAL):
        client.open(b"file", flags=3)
    with refused(errno.EISDIR):
        client.open(b"sub", flags=O_RDWR)
    with refused(errno.EISDIR):
        client.read(client.open(b"sub"), 0, 10)


def test_a_fid_is_opened_once(client: Client) -> None:
    fid = client.open(b"file")
    with refused(errno.EINVAL):
        client.call(12, pack("<II", fid, 0))
    with refused(errno.EINVAL):
        client.call(14, pack("<I", fid) + s(b"x") + pack("<III", 0, 0, 0))
    with refused(errno.EBADF):
        client.read(client.walk(b"file"), 0, 1)


def test_create_has_the_mode_asked_for_and_takes_what_is_there(client: Client, folder: Path) -> None:
    old = os.umask(0o077)
    try:
        client.create(b"new", mode=0o664)
        client.mkdir(b"dir", mode=0o775)
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o664
    assert stat.S_IMODE((folder / "dir").stat().st_mode) == 0o775
    with refused(errno.EEXIST):
        client.create(b"file", flags=O_RDWR | O_EXCL)
    assert client.read(client.create(b"file"), 0, 100) == b"contents\n"
    fid = client.create(b"readonly", mode=0o400)
    assert client.write(fid, 0, b"still ours") == 10
    client.setattr(fid, SIZE, size=5)
    assert (folder / "readonly").read_bytes() == b"still"


def test_a_removed_file_that_is_open_keeps_working(client: Client, folder: Path) -> None:
    fid = client.open(b"file", flags=O_RDWR)
    client.unlinkat(b"file")
    assert not (folder / "file").exists()
    assert client.read(fid, 0, 100) == b"contents\n"
    client.write(fid, 0, b"C")
    client.setattr(fid, SIZE, size=3)
    assert client.read(fid, 0, 100) == b"Con"
    assert client.getattr(fid)["nlink"] == 0


def test_fsync_and_statfs(client: Client, folder: Path) -> None:
    fid = client.open(b"file", flags=O_RDWR)
    for data_only in (0, 1):
        assert client.call(50, pack("<II", fid, data_only)) == b""
    told = unpack_from("<IIQQQQQQI", client.call(8, pack("<I", fid)))
    own = os.statvfs(folder)
    assert told[1:3] == (own.f_frsize, own.f_blocks) and told[8] == 255


# Folders


def test_readdir_has_every_entry_whatever_fits_in_an_answer(client: Client, folder: Path) -> None:
    names = {f"{n}-{'x' * (n % 200)}".encode() for n in range(500)}
    for name in names:
        (folder / "sub" / os.fsdecode(name)).touch()
    wanted = sorted(names | {b".", b"..", b"deep"})
    for count in (300, 4096, 65_000):
        assert client.listing(b"sub", count=count) == wanted
    fid = client.open(b"sub")
    entries = client.readdir(fid)
    assert client.readdir(fid, entries[3][2])[0] == entries[4]
    assert {kind for name, kind, *_ in client.readdir(fid, 0, 60_000) if name == b"deep"} == {4}
    with refused(errno.EINVAL):
        client.readdir(fid, 0, 20)
    with refused(errno.ENOTDIR):
        client.readdir(client.open(b"file"))


def test_the_roots_parent_is_the_root(client: Client, folder: Path) -> None:
    entries = {name: inode for name, _, _, inode in client.readdir(client.open())}
    assert entries[b".."] == entries[b"."] == folder.stat().st_ino


def test_making_and_removing(client: Client, folder: Path) -> None:
    client.mkdir(b"dir")
    client.create(b"in it", folder=client.walk(b"dir"))
    with refused(errno.ENOTEMPTY):
        client.unlinkat(b"dir", REMOVE_FOLDER)
    with refused(errno.EISDIR):
        client.unlinkat(b"dir")
    client.remove(client.walk(b"dir", b"in it"))
    client.remove(client.walk(b"dir"))
    assert not (folder / "dir").exists()
    with refused(errno.EEXIST):
        client.mkdir(b"sub")


def test_links(client: Client, folder: Path) -> None:
    client.symlink(b"soft", b"sub/deep/leaf")
    fid = client.walk(b"soft")
    assert client.getattr(fid)["type"] == 2
    assert client.readlink(fid) == b"sub/deep/leaf" == os.fsencode(os.readlink(folder / "soft"))
    with refused(errno.ELOOP):
        client.call(12, pack("<II", fid, 0))
    with refused(errno.EINVAL):
        client.readlink(client.walk(b"file"))
    client.link(client.walk(b"file"), b"hard")
    assert (folder / "hard").samefile(folder / "file")
    client.link(fid, b"soft too")
    assert os.readlink(folder / "soft too") == "sub/deep/leaf"


def test_fids_follow_a_rename(client: Client, folder: Path) -> None:
    fid, deep = client.walk(b"file"), client.walk(b"sub", b"deep")
    client.renameat(b"file", b"moved", to_folder=client.walk(b"sub"))
    assert (folder / "sub" / "moved").read_bytes() == b"contents\n"
    client.rename(fid, b"again", deep)
    assert (folder / "sub" / "deep" / "again").exists()
    client.renameat(b"deep", b"top", folder=client.walk(b"sub"))
    assert client.getattr(client.walk(b"..", start=deep))["path"] == folder.stat().st_ino
    client.remove(fid)
    assert os.listdir(folder / "top") == ["leaf"]
    (folder / "elsewhere").touch()
    stale = client.walk(b"elsewhere")
    os.rename(folder / "elsewhere", folder / "kept")
    (folder / "elsewhere").touch()
    with refused(errno.ENOENT):
        client.remove(stale)
    assert (folder / "elsewhere").exists() and (folder / "kept").exists()


def test_the_root_is_neither_removed_nor_renamed(client: Client, folder: Path) -> None:
    with refused(errno.EBUSY):
        client.rename(ROOT, b"x")
    with refused(errno.EBUSY):
        client.remove(client.walk())
    assert folder.exists()


def test_special_files(client: Client, folder: Path) -> None:
    client.mknod(b"plain", stat.S_IFREG | 0o640)
    client.mknod(b"fifo", stat.S_IFIFO | 0o600)
    client.mknod(b"socket", stat.S_IFSOCK | 0o600)
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    assert stat.S_ISREG((folder / "plain").stat().st_mode)
    with refused(errno.EPERM):
        client.mknod(b"disk", stat.S_IFBLK | 0o600, 8, 0)


# Attributes


def test_setattr(client: Client, folder: Path) -> None:
    fid = client.walk(b"file")
    client.setattr(fid, MODE, stat.S_IFREG | 0o604)
    client.setattr(fid, SIZE, 0, 0, 0, 3)
    client.setattr(fid, ATIME | MTIME | GIVEN_ATIME | GIVEN_MTIME, 0, 0, 0, 0, 1000, 5, 2000, 7)
    own = (folder / "file").stat()
    assert (stat.S_IMODE(own.st_mode), own.st_size) == (0o604, 3)
    assert (own.st_atime_ns, own.st_mtime_ns) == (1000 * 10**9 + 5, 2000 * 10**9 + 7)
    client.setattr(fid, ATIME)
    own = (folder / "file").stat()
    assert own.st_mtime_ns == 2000 * 10**9 + 7 and own.st_atime > 10**9
    client.setattr(fid, MTIME | GIVEN_MTIME, 0, 0, 0, 0, 0, 0, (1 << 64) - 100, 0)
    assert (folder / "file").stat().st_mtime == -100
    assert client.getattr(fid)["mtime"] == (1 << 64) - 100
    client.setattr(fid, UID | GID, uid=os.getuid(), gid=os.getgid())
    with refused(errno.EISDIR):
        client.setattr(client.walk(b"sub"), SIZE, size=1)
    with refused(errno.EFBIG):
        client.setattr(fid, SIZE, size=1 << 63)


def test_none_gives_no_one_on_the_host_more_rights(client: Client, folder: Path) -> None:
    client.create(b"mine", mode=0o6755)
    assert stat.S_IMODE((folder / "mine").stat().st_mode) == 0o755
    client.setattr(client.walk(b"file"), MODE, stat.S_IFREG | 0o6755)
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o755
    client.mkdir(b"group", mode=0o2755)
    assert stat.S_IMODE((folder / "group").stat().st_mode) == 0o2755


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files away")
def test_none_ignores_owners_that_the_host_does_not_allow(client: Client, folder: Path) -> None:
    client.setattr(client.walk(b"file"), UID | GID, uid=12345, gid=12345)
    client.create(b"new", gid=12345)
    assert (folder / "file").stat().st_uid == (folder / "new").stat().st_uid == os.getuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_passthrough_gives_files_the_guests_owners(ram: Ram, folder: Path) -> None:
    client = Client(ram, folder, "passthrough", uid=1001)
    client.create(b"new", mode=0o4755, gid=1002)
    client.mknod(b"null", stat.S_IFCHR | 0o666, 1, 3)
    own = (folder / "new").stat()
    assert (own.st_uid, own.st_gid, stat.S_IMODE(own.st_mode)) == (1001, 1002, 0o4755)
    assert (folder / "null").stat().st_rdev == os.makedev(1, 3)
    told = client.getattr(client.walk(b"null"))
    assert (told["rdev"], told["uid"]) == (0x103, 1001)
    with refused(errno.ENXIO):
        client.open(b"null")


def test_extended_attributes(client: Client, folder: Path) -> None:
    fid = client.walk(b"file")
    client.set_xattr(fid, b"user.one", b"value")
    client.set_xattr(fid, b"user.two", b"v" * 2000)
    assert os.getxattr(folder / "file", "user.one") == b"value" == client.xattr(fid, b"user.one")
    assert sorted(client.xattr(fid).split(b"\0")) == [b"", b"user.one", b"user.two"]
    with refused(errno.EEXIST):
        client.set_xattr(fid, b"user.one", b"x", flags=1)
    with refused(errno.ENODATA):
        client.set_xattr(fid, b"user.three", b"x", flags=2)
    with refused(errno.EINVAL):
        client.set_xattr(fid, b"user.one", b"short", size=10)
    client.set_xattr(fid, b"user.one", b"")
    with refused(errno.ENODATA):
        client.xattr(fid, b"user.one")
    for name in (b"security.capability", b"trusted.x", b"system.posix_acl_access", b"nonsense"):
        with refused(errno.EOPNOTSUPP):
            client.xattr(fid, name)
        with refused(errno.EOPNOTSUPP):
            client.set_xattr(fid, name, b"x")


def test_extended_attributes_take_no_more_memory_than_allowed(client: Client) -> None:
    fid = client.walk(b"file")
    with refused(errno.E2BIG):
        client.call(32, pack("<I", client.walk(start=fid)) + s(b"user.x") + pack("<QI", 65537, 0))
    held = 0
    with refused(errno.ENOMEM):
        for _ in range(300):
            client.call(32, pack("<I", client.walk(start=fid)) + s(b"user.x") + pack("<QI", 65536, 0))
            held += 1
    assert held == 256
    client.version()
    client.attach()
    client.set_xattr(client.walk(b"file"), b"user.x", b"v" * 3000)
    for _ in range((16 << 20) // 3000 + 1):  # what is clunked takes none
        client.xattr(client.walk(b"file", new=99), b"user.x")
        client.clunk(99)


# Locks


def test_locks_exclude_the_guests_processes_and_the_hosts(client: Client, folder: Path) -> None:
    one, two = client.open(b"file", flags=O_RDWR), client.open(b"file", flags=O_RDWR)
    assert client.lock(one, 1, process=10, start=0, length=5) == 0
    assert client.lock(two, 1, process=10, start=2, length=5) == 0  # its own lock is in nobody's way
    assert client.lock(two, 0, process=11, start=3) == 1
    assert client.getlock(two, 1, process=11, start=3) == (1, 0, 7)
    assert client.getlock(two, 1, process=10, start=3)[0] == 2
    with (folder / "file").open("r+b") as own, pytest.raises(BlockingIOError):
        fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert client.lock(one, 2, process=10) == 0
    assert client.lock(two, 1, process=11) == 0
    client.clunk(one)
    assert client.lock(two, 1, process=12) == 1
    client.clunk(two)
    again = client.open(b"file")
    assert client.lock(again, 0, process=12) == 0
    for kind, start, length in ((3, 0, 0), (0, 1 << 63, 0), (0, 0, 1 << 63)):
        with refused(errno.EINVAL):
            client.lock(again, kind, 12, start, length)


def test_locks_are_limited(client: Client) -> None:
    fid = client.open(b"file")
    with refused(errno.ENOLCK):
        for process in range(1025):
            client.lock(fid, 0, process)
    client.clunk(fid)
    assert client.lock(client.open(b"file"), 1, 1) in (0, 1)


# Read-only


def test_a_readonly_share_changes_nothing(ram: Ram, folder: Path) -> None:
    client = Client(ram, folder, readonly=True)
    before = sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_mode) for path in folder.rglob("*"))
    fid = client.walk(b"file")
    changes = [
        lambda: client.open(b"file", flags=O_RDWR),
        lambda: client.open(b"file", flags=O_WRONLY),
        lambda: client.open(b"file", flags=O_TRUNC),
        lambda: client.create(b"new", flags=0),
        lambda: client.create(b"file", flags=0),
        lambda: client.mkdir(b"new"),
        lambda: client.symlink(b"new", b"target"),
        lambda: client.mknod(b"new", stat.S_IFREG),
        lambda: client.link(fid, b"new"),
        lambda: client.rename(fid, b"new"),
        lambda: client.renameat(b"file", b"new"),
        lambda: client.unlinkat(b"file"),
        lambda: client.remove(client.walk(b"file")),
        lambda: client.setattr(fid, MODE, 0o777),
        lambda: client.setattr(fid, SIZE),
        lambda: client.setattr(fid, MTIME),
        lambda: client.setattr(fid, UID),
        lambda: client.set_xattr(fid, b"user.x", b"x"),
    ]
    for change in changes:
        with refused(errno.EROFS):
            change()
    assert sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_mode) for path in folder.rglob("*")) == before
    assert client.read(client.open(b"file"), 0, 100) == b"contents\n"
    assert client.lock(client.open(b"file"), 0, 1) == 0


# Two devices of the host in one tree


@pytest.fixture
def two_devices(tmp_path: Path) -> Path:
    """A folder that has another file system in it: /dev as a rule is one, seen from /."""
    if os.stat("/dev/shm").st_dev == os.stat("/").st_dev:
        pytest.skip("/dev/shm is not a file system of its own")
    return Path("/")


@pytest.mark.parametrize("multidevs", ["remap", "warn", "forbid"])
def test_other_devices_of_the_host(
    ram: Ram, two_devices: Path, multidevs: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client = Client(ram, two_devices, readonly=True, multidevs=multidevs)
    if multidevs == "forbid":
        fid = client.walk(b"dev") if os.stat("/dev").st_dev == os.stat("/").st_dev else ROOT
        with refused(errno.ENODEV):
            client.walk(b"shm" if fid else b"dev", start=fid)
        return
    told = client.getattr(client.walk(b"dev", b"shm"))
    same = told["path"] == os.stat("/dev/shm").st_ino
    assert same == (multidevs == "warn")
    client.walk(b"dev", b"shm")
    assert capfd.readouterr().err.count("multidevs=remap") == (multidevs == "warn")


def test_a_socket_or_fifo_of_the_host_is_not_opened(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)
        listener.bind("socket")
        for name in (b"fifo", b"socket"):
            for flags in (0, O_WRONLY, O_RDWR):
                with refused(errno.ENXIO):
                    client.open(name, flags=flags)
                with refused(errno.ENXIO):
                    client.create(name, flags=flags)
