"""virtio-9p with a guest that means harm: nothing outside of the folder is reached, nothing hangs or crashes."""

import contextlib
import errno
import gc
import os
import stat
import tempfile
from pathlib import Path
from struct import pack, unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ninep_client import NO_FID, O_RDWR, ROOT, Client, NinepError, client, open_handles, refused, s

from virtio import host_calls, host_tree, ninep_session
from virtio.host_tree import Handle, Node, raise_limits
from virtio.ninep_messages import FIELDS, Message
from virtio.queue import Ram

__all__ = ["client"]

FUZZ = settings(max_examples=150)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shared folder beside a secret."""
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "file").write_bytes(b"contents\n")
    (tmp_path / "secret").write_bytes(b"secret\n")
    return shared


def outside(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.parent.iterdir()) if path.is_file()]


BAD_NAMES = [
    b"../secret",
    b"sub/../../secret",
    b"/etc/passwd",
    b"sub/file",
    b"..",
    b".",
    b"",
    b"a\0b",
    b"x" * 256,
    b"/",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_is_a_name_and_no_path(client: Client, folder: Path, name: bytes) -> None:
    """CVE-2016-7116 and its like: every message with a name, each in turn."""
    before = outside(folder)
    file, sub = client.walk(b"file"), client.walk(b"sub")
    attempts = [
        lambda: client.create(name),
        lambda: client.mkdir(name, folder=sub),
        lambda: client.symlink(name, b"x", folder=sub),
        lambda: client.mknod(name, stat.S_IFREG, folder=sub),
        lambda: client.link(file, name, folder=sub),
        lambda: client.rename(file, name, folder=sub),
        lambda: client.renameat(b"file", name, to_folder=sub),
        lambda: client.renameat(name, b"mine", folder=sub),
        lambda: client.unlinkat(name, folder=sub),
        lambda: client.unlinkat(name, 0x200, folder=sub),
    ]
    for attempt in attempts:
        with refused(errno.ENOENT, errno.EEXIST, errno.EINVAL, errno.ENAMETOOLONG):
            attempt()
    if name not in (b".", b".."):
        with refused(errno.ENOENT, errno.ENAMETOOLONG):
            client.walk(name)
    assert outside(folder) == before and sorted(os.listdir(folder)) == ["file", "sub"]


def test_no_number_of_dots_leads_above_the_root(client: Client, folder: Path) -> None:
    root = client.getattr(ROOT)["path"]
    assert client.getattr(client.walk(*[b".."] * 16))["path"] == root
    assert client.getattr(client.walk(b"sub", *[b".."] * 15))["path"] == root
    with refused(errno.ENOENT):
        client.walk(b"..", b"secret")


def test_links_are_never_followed_on_the_host(client: Client, folder: Path) -> None:
    """CVE-2017-7471 and its like: the guest makes a link to the outside and walks through it."""
    before = outside(folder)
    client.symlink(b"up", b"..")
    client.symlink(b"direct", b"../secret")
    client.symlink(b"absolute", os.fsencode(folder.parent / "secret"))
    up = client.walk(b"up")
    with refused(errno.ENOTDIR):
        client.walk(b"secret", start=up)
    for attempt in (
        lambda: client.create(b"new", folder=up),
        lambda: client.mkdir(b"new", folder=up),
        lambda: client.unlinkat(b"secret", folder=up),
        lambda: client.renameat(b"secret", b"mine", folder=up),
        lambda: client.renameat(b"file", b"new", to_folder=up),
    ):
        with refused(errno.ENOTDIR):
            attempt()
    for name in (b"direct", b"absolute"):
        with refused(errno.ELOOP):
            client.open(name)
        with refused(errno.ELOOP):
            client.create(name)
        with refused():
            client.setattr(client.walk(name), 8, size=0)
        with contextlib.suppress(NinepError):  # of the link, where the host has modes of links
            client.setattr(client.walk(name), 1, 0o777)
    assert outside(folder) == before
    assert stat.S_IMODE((folder.parent / "secret").stat().st_mode) != 0o777


def test_a_link_of_proc_is_no_way_out(ram: Ram, tmp_path: Path) -> None:
    """Links that are no text but lead straight to a file, as /proc has them."""
    client = Client(ram, Path("/proc/self"), readonly=True)
    with refused(errno.ENOTDIR):
        client.walk(b"etc", start=client.walk(b"root"))
    with refused(errno.ELOOP):
        client.open(b"exe")


@pytest.mark.parametrize("has_openat2", [True, False])
def test_a_folder_replaced_by_a_link_is_still_the_folder(
    ram: Ram, folder: Path, has_openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_calls, "_HAS_OPENAT2", has_openat2)
    client = Client(ram, folder)
    sub = client.walk(b"sub")
    os.rename(folder / "sub", folder / "moved")
    os.symlink("..", folder / "sub")
    client.create(b"new", folder=sub)
    client.mkdir(b"dir", folder=sub)
    assert sorted(os.listdir(folder / "moved")) == ["dir", "new"]
    assert sorted(os.listdir(folder.parent)) == ["secret", "shared"]
    with refused(errno.ENOTDIR):
        client.walk(b"secret", start=client.walk(b"sub"))
    with refused(errno.ENOENT):
        client.walk(b"none")


def test_a_file_replaced_by_a_fifo_is_still_the_file(client: Client, folder: Path) -> None:
    fid = client.walk(b"file")
    (folder / "file").unlink()
    os.mkfifo(folder / "file")
    with refused(errno.ENOENT):
        client.remove(client.walk(start=fid))
    with refused(errno.ENXIO):
        client.create(b"file", flags=1)
    with refused(errno.ENXIO):
        client.open(b"file")


# Limits


def test_fids_are_limited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ninep_session, "MOST_FIDS", 100)
    with refused(errno.ENFILE):
        for _ in range(101):
            client.walk()
    client.version()
    client.attach()
    client.walk()


def test_open_files_are_limited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handle, "limit", open_handles() + 50)
    made = []
    with refused(errno.ENFILE):
        for _ in range(51):
            made.append(client.open(b"file"))
    assert 20 <= len(made) <= 50
    with refused(errno.ENFILE):
        client.open(b"file")
    client.clunk(made[0])
    client.open(b"file")


def test_the_limit_is_what_the_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handle, "limit", 0)
    monkeypatch.setattr(host_tree.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(host_tree.resource, "getrlimit", lambda _: (1024, 1024))
    raise_limits()
    assert Handle.limit == 1024 - host_tree.RESERVED


def test_a_deep_tree_is_let_go_of_without_trouble(folder: Path) -> None:
    """A node keeps its folder; the last of a long chain goes with all of them."""
    before = open_handles()
    node = Node(os.open(folder, os.O_PATH))
    for _ in range(min(5000, Handle.limit // 2)):
        node = Node(os.open(folder, os.O_PATH), node, b"d")
    del node
    assert open_handles() == before


def test_no_renaming_makes_a_ring_of_folders(client: Client, folder: Path) -> None:
    """Descriptors of nodes that held each other would stay open for ever."""
    client.mkdir(b"a")
    client.mkdir(b"b", folder=client.walk(b"a"))
    client.mkdir(b"c", folder=client.walk(b"a", b"b"))
    client.version()
    client.attach()
    before = open_handles()
    a = client.walk(b"a")
    b = client.walk(b"b", start=a)
    c = client.walk(b"c", start=b)
    client.clunk(b)  # now known as the parent of c only, and not told of what follows
    client.renameat(b"b", b"b", folder=a)
    b = client.walk(b"..", start=c)
    with refused(errno.ENOENT):
        client.walk(b"..", start=b)
    client.renameat(b"a", b"a", to_folder=b)
    assert (folder / "b" / "a").is_dir()
    gc.collect()
    gc.disable()
    try:
        client.version()
        client.attach()
        assert Handle.count == before
    finally:
        gc.enable()


def test_a_walk_has_sixteen_names(client: Client) -> None:
    with refused(errno.EINVAL):
        client.walk(*[b"."] * 17)


def test_what_a_message_may_hold_is_limited(client: Client) -> None:
    client.version(4096)
    client.attach()
    with refused(errno.EINVAL):
        client.symlink(b"long", b"x" * 5000)
    client.version(1 << 20)
    client.attach()
    with refused(errno.ENAMETOOLONG):
        client.symlink(b"long", b"x" * 5000)


# Messages that are none


@pytest.mark.parametrize("message", [b"", b"\7\0\0\0\x64\0", b"\7"])
def test_what_has_no_header_needs_a_reset(client: Client, message: bytes) -> None:
    client.rig.rings[0].add(*([message] if message else []), 100)
    client.rig.notify()
    assert client.rig.needs_reset()


@pytest.mark.parametrize("room", [(), (10,), (5, 5)])
def test_no_room_for_an_answer_needs_a_reset(client: Client, room: tuple[int, ...]) -> None:
    """CVE-2011-2512 and its like: lengths of the queue's buffers that the message does not expect."""
    client.rig.rings[0].add(pack("<IBHI", 11, 120, 1, ROOT), *room)
    client.rig.notify()
    assert client.rig.needs_reset()
    client.rig.start()
    client.version()
    client.attach()


def test_too_little_room_is_an_error(client: Client, folder: Path) -> None:
    with refused(errno.EMSGSIZE):
        client.call(24, pack("<IQ", ROOT, 0x7FF), 100)
    with refused(errno.EMSGSIZE):
        client.call(104, pack("<II", 50, NO_FID) + s(b"u") + s(b"") + pack("<I", 0), 11)
    assert client.raw(pack("<IBHIQI", 23, 116, 1, client.open(b"file"), 0, 100), 11)[7:] == b"\0\0\0\0"


@pytest.mark.parametrize(
    ("size", "kind", "body"),
    [
        (7, 110, b""),
        (0, 120, b"\0\0\0\0"),
        (6, 120, b"\0\0\0\0"),
        (0xFFFF_FFFF, 120, b"\0\0\0\0"),
        (12, 120, b"\0\0\0\0"),
        (19, 72, pack("<IH", 0, 500) + b"short "),
        (24, 118, pack("<IQI", 0, 0, 100) + b"x"),
        (23, 118, pack("<IQI", 0, 0, 1) + b"x"),
        (13, 110, pack("<IIH", 0, 1, 3)),
    ],
)
def test_lengths_that_lie_are_an_error(client: Client, size: int, kind: int, body: bytes) -> None:
    answer = client.raw(pack("<IBH", size, kind, 9) + body)
    assert unpack_from("<IBHI", answer) == (11, 7, 9, errno.EINVAL)


def test_numbers_beyond_what_the_host_can_are_errors(client: Client) -> None:
    fid = client.open(b"file", flags=O_RDWR)
    for offset in (1 << 63, (1 << 64) - 1, (1 << 63) - 1):
        with refused(errno.EINVAL):
            client.read(fid, offset, 10)
        with refused(errno.EINVAL, errno.EFBIG):
            client.write(fid, offset, b"0123456789")
    with refused(errno.EINVAL):
        client.readdir(client.open(), 1 << 63)


@FUZZ
@given(kind=st.integers(0, 255), body=st.binary(max_size=80), size=st.none() | st.integers(0, (1 << 32) - 1))
def test_any_bytes_get_an_answer(ram: Ram, kind: int, body: bytes, size: int | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        client = Client(ram, Path(place))
        answer = client.raw(pack("<IBH", 7 + len(body) if size is None else size, kind, 77) + body)
        assert unpack_from("<IBH", answer)[::2] == (len(answer), 77)
        assert answer[4] in (7, kind + 1)
        if kind not in set(Message) - {Message.LERROR}:
            assert unpack_from("<I", answer, 7)[0] == errno.EOPNOTSUPP
        assert not client.rig.needs_reset()


NAMES = st.sampled_from([b"file", b"sub", b"new", b"up", b"..", b".", *BAD_NAMES]) | st.binary(max_size=12)
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 5, 8, 0o755, 0o120777, 0o10644, 0o40755, 0o100644, 1 << 31, 1 << 63, (1 << 64) - 1]
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message whose fields are in order and whose values are anything."""
    kind = draw(st.sampled_from([message for message in FIELDS if message is not Message.VERSION]))
    body = b""
    for position, code in enumerate(FIELDS[kind]):
        if code == "s":
            body += s(draw(NAMES))
        elif code == "*":
            names = draw(st.lists(NAMES, max_size=4))
            body += pack("<H", len(names)) + b"".join(map(s, names))
        else:
            number = draw(st.integers(0, 5)) if position < 2 else draw(NUMBERS | st.integers(0, (1 << 64) - 1))
            size = {"B": 1, "H": 2, "I": 4, "Q": 8}[code]
            body += (number & (1 << 8 * size) - 1).to_bytes(size, "little")
    body += b"x" * draw(st.integers(0, 5)) if kind is Message.WRITE else b""
    return pack("<IBH", 7 + len(body), kind, 1) + body


def contents(place: Path) -> list[tuple[str, os.stat_result]]:
    return [(str(path), path.lstat()[:7] + path.lstat()[8:9]) for path in sorted(place.rglob("*"))]


@FUZZ
@given(
    model=st.sampled_from(["none", "passthrough", "mapped-xattr"]),
    readonly=st.booleans(),
    sequence=st.lists(messages(), min_size=1, max_size=25),
)
def test_any_messages_stay_inside(ram: Ram, model: str, readonly: bool, sequence: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        shared, beside = Path(place, "shared"), Path(place, "beside")
        (shared / "sub").mkdir(parents=True)
        (shared / "file").write_bytes(b"contents\n")
        os.symlink("../beside", shared / "up")
        (beside / "sub").mkdir(parents=True)
        (beside / "file").write_bytes(b"not theirs\n")
        before, listed = contents(beside), sorted(os.listdir(place))
        kept = contents(shared)
        client = Client(ram, shared, model, readonly)
        client.walk(b"sub", new=1)
        client.walk(b"file", new=2)
        client.call(12, pack("<II", 2, 0 if readonly else 2))
        for message in sequence:
            answer = client.raw(message)
            assert unpack_from("<I", answer)[0] == len(answer)
            assert answer[4] in (7, message[4] + 1)
        assert not client.rig.needs_reset()
        assert contents(beside) == before
        assert sorted(os.listdir(place)) == listed
        assert not readonly or contents(shared) == kept
