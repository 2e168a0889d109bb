"""Record locks of a guest's processes, held as open-file-description locks on the host's files.

Each process that locks a file has a descriptor of its own for it, so that the host resolves conflicts: between the
guest's processes, with those of other machines that share the folder, and with the host's own.
"""

import errno
import fcntl
import os
from typing import NamedTuple

from virtio.host_calls import host_error
from virtio.host_tree import FLOCK, Handle, HostTree, Identity, Node

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK  # the protocol has the same numbers: 0, 1, 2
MOST_HOLDERS = 1024
LONGEST_NAME = 255  # of a client


class Owner(NamedTuple):
    """Who holds a lock: the number of a process and the name of its client."""

    process: int
    client: bytes


class Range(NamedTuple):
    """What a lock covers; a length of 0 is up to the end, wherever that will be."""

    kind: int
    start: int
    length: int

    def pack(self) -> bytes:
        """struct flock."""
        if self.kind not in (READ, WRITE, UNLOCK) or self.start >> 63 or self.length >> 63:
            raise host_error(errno.EINVAL)
        return FLOCK.pack(self.kind, os.SEEK_SET, self.start, self.length, 0)


class Locks:
    """The locks of one session."""

    def __init__(self, tree: HostTree) -> None:
        self.tree = tree
        self.holders: dict[Identity, dict[Owner, Handle]] = {}

    def take(self, node: Node, owner: Owner, wanted: Range) -> bool:
        """Take or give up a lock; False when somebody is in the way."""
        flock = wanted.pack()
        of_file = self.holders.get(node.identity, {})
        if wanted.kind == UNLOCK and owner not in of_file:
            return True
        try:
            fcntl.fcntl(self._holder(node, owner).fd, fcntl.F_OFD_SETLK, flock)
        except BlockingIOError:
            return False
        if wanted == (UNLOCK, 0, 0):  # everything: the process has closed the file
            of_file.pop(owner)
        return True

    def in_the_way(self, node: Node, owner: Owner, wanted: Range) -> Range:
        """A lock that keeps this one from being taken; of kind UNLOCK when there is none."""
        held = self.holders.get(node.identity, {}).get(owner) or self.tree.lock_file(node)
        found = FLOCK.unpack(fcntl.fcntl(held.fd, fcntl.F_OFD_GETLK, wanted.pack()))
        return Range(found[0], found[2], found[3])

    def _holder(self, node: Node, owner: Owner) -> Handle:
        of_file = self.holders.setdefault(node.identity, {})
        if owner not in of_file:
            full = sum(map(len, self.holders.values())) >= MOST_HOLDERS
            if full or len(owner.client) > LONGEST_NAME:
                raise host_error(errno.ENOLCK)
            of_file[owner] = self.tree.lock_file(node)
        return of_file[owner]

    def release(self, identity: Identity) -> None:
        """Nobody has the file open any more."""
        self.holders.pop(identity, None)
