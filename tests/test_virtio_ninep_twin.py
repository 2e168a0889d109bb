"""virtio-9p against the host itself: the same operations by messages in one folder and by calls in its twin."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from ninep_client import ROOT, Client, NinepError

from virtio.queue import Ram

FOLDERS = st.sampled_from(["", "d", "d/d", "s"])
NAMES = st.sampled_from(["a", "b", "d", "s"])
PLACES = st.tuples(FOLDERS, NAMES)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o700])


class Messages:
    """The operations as a client does them."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def fid(self, path: str) -> int:
        """Name by name, so that an error is that of the name where it is."""
        fid = self.client.walk()
        for name in filter(None, path.split("/")):
            self.client.walk(name.encode(), start=fid, new=fid)
        return fid

    def at(self, place: tuple[str, str]) -> tuple[bytes, int]:
        return place[1].encode(), self.fid(place[0])

    def write(self, place: tuple[str, str], data: bytes, mode: int) -> None:
        name, folder = self.at(place)
        self.client.write(self.client.create(name, mode=mode, folder=folder), 0, data)

    def mkdir(self, place: tuple[str, str], mode: int) -> None:
        name, folder = self.at(place)
        self.client.mkdir(name, folder, mode)

    def symlink(self, place: tuple[str, str], target: bytes) -> None:
        name, folder = self.at(place)
        self.client.symlink(name, target, folder)

    def link(self, place: tuple[str, str], to: tuple[str, str]) -> None:
        source = self.fid("/".join(place))
        name, folder = self.at(to)
        self.client.link(source, name, folder)

    def rename(self, place: tuple[str, str], to: tuple[str, str]) -> None:
        (name, folder), (to_name, to_folder) = self.at(place), self.at(to)
        self.client.renameat(name, to_name, folder, to_folder)

    def unlink(self, place: tuple[str, str]) -> None:
        name, folder = self.at(place)
        self.client.unlinkat(name, 0, folder)

    def rmdir(self, place: tuple[str, str]) -> None:
        name, folder = self.at(place)
        self.client.unlinkat(name, 0x200, folder)

    def chmod(self, place: tuple[str, str], mode: int) -> None:
        self.client.setattr(self.fid("/".join(place)), 1, mode)

    def truncate(self, place: tuple[str, str], size: int) -> None:
        self.client.setattr(self.fid("/".join(place)), 8, size=size)


class Calls:
    """The same by the host's calls; no link on the way is followed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def at(self, place: tuple[str, str]) -> Path:
        path = self.root
        for name in filter(None, place[0].split("/")):
            path = path / name
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "no folder")
        return path / place[1]

    def write(self, place: tuple[str, str], data: bytes, mode: int) -> None:
        fd = os.open(self.at(place), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
        os.pwrite(fd, data, 0)
        os.close(fd)

    def mkdir(self, place: tuple[str, str], mode: int) -> None:
        os.mkdir(self.at(place), mode)

    def symlink(self, place: tuple[str, str], target: bytes) -> None:
        os.symlink(target, os.fsencode(self.at(place)))

    def link(self, place: tuple[str, str], to: tuple[str, str]) -> None:
        source = self.at(place)
        source.lstat()
        os.link(source, self.at(to), follow_symlinks=False)

    def rename(self, place: tuple[str, str], to: tuple[str, str]) -> None:
        os.rename(self.at(place), self.at(to))

    def unlink(self, place: tuple[str, str]) -> None:
        os.unlink(self.at(place))

    def rmdir(self, place: tuple[str, str]) -> None:
        os.rmdir(self.at(place))

    def chmod(self, place: tuple[str, str], mode: int) -> None:
        path = self.at(place)
        if stat.S_ISLNK(path.lstat().st_mode):
            raise OSError(errno.EOPNOTSUPP, "a link has no mode")
        os.chmod(path, mode)

    def truncate(self, place: tuple[str, str], size: int) -> None:
        path = self.at(place)
        if stat.S_ISLNK(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "a link has no size to set")
        os.truncate(path, size)


OPERATIONS = st.one_of(
    st.tuples(st.just("write"), PLACES, st.binary(max_size=20), MODES),
    st.tuples(st.just("mkdir"), PLACES, st.just(0o755)),
    st.tuples(st.just("symlink"), PLACES, st.sampled_from([b"a", b"d", b"../d/b", b"/etc"])),
    st.tuples(st.just("link"), PLACES, PLACES),
    st.tuples(st.just("rename"), PLACES, PLACES),
    st.tuples(st.just("unlink"), PLACES),
    st.tuples(st.just("rmdir"), PLACES),
    st.tuples(st.just("chmod"), PLACES, MODES),
    st.tuples(st.just("truncate"), PLACES, st.integers(0, 50)),
)


def outcome(do: Callable[[], None]) -> int:
    try:
        do()
    except (NinepError, OSError) as error:
        return error.errno or 0
    return 0


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Names with mode, number of links and contents."""
    found = {}
    for path in root.rglob("*"):
        own = path.lstat()
        data = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (own.st_mode, own.st_nlink, data)
    return found


@settings(max_examples=120)
@given(st.lists(OPERATIONS, min_size=3, max_size=30))
def test_messages_do_what_calls_do(ram: Ram, operations: list[tuple]) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as place:
        ours, twin = Path(place, "ours"), Path(place, "twin")
        old = os.umask(0)
        try:
            for root in (ours, twin):
                (root / "d" / "d").mkdir(parents=True)
                os.symlink("d", root / "s")
            messages, calls = Messages(Client(ram, ours, uid=os.geteuid())), Calls(twin)
            for name, *words in operations:
                got = outcome(lambda: getattr(messages, name)(*words))  # noqa: B023
                assert got == outcome(lambda: getattr(calls, name)(*words)), (name, words)  # noqa: B023
            assert tree(ours) == tree(twin)
            assert messages.client.getattr(ROOT)["nlink"] == twin.stat().st_nlink
        finally:
            os.umask(old)
