"""What a back-end needs of the host once the I/O process is in its sandbox (virtio/sandbox.py)."""

from collections.abc import Iterable
from typing import NamedTuple

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD = 0, 1, 3, 4, 27


class Needs(NamedTuple):
    """Descriptors that are open need nothing.  A folder goes with everything in it.

    reads, writes: paths, or descriptors, of what is opened later; removes: files that are taken away at the end.
    families: of sockets that are made later; connects: whether one is connected; ports: TCP ports to connect to.
    ioctls: requests beyond those of terminals and sockets.
    capabilities: those that are kept if the machine was started by root.
    """

    reads: tuple[str | int, ...] = ()
    writes: tuple[str | int, ...] = ()
    removes: tuple[str, ...] = ()
    families: tuple[int, ...] = ()
    connects: bool = False
    ports: tuple[int, ...] = ()
    ioctls: tuple[int, ...] = ()
    capabilities: tuple[int, ...] = ()

    def opens_files(self) -> bool:
        """Whether anything in the file system is opened."""
        return bool(self.reads or self.writes)


def together(all_needs: Iterable[Needs]) -> Needs:
    """What several back-ends of one process need."""
    result = Needs()
    for needs in all_needs:
        result = Needs(*(mine + theirs for mine, theirs in zip(result, needs, strict=True)))  # type: ignore[operator]
    return result._replace(connects=bool(result.connects))
