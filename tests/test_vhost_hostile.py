"""Back-ends that mean harm or break: a front end leaves them, and loses no request."""

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from struct import pack, unpack

import pytest
from test_vhost_user import backend, disk, done, ram, request, turn, wait

from virtio.blk import OK, Kind
from virtio.queue import Ram
from virtio.vhost_user import Backend
from virtio.vhost_wire import BackendError, Session

__all__ = ["ram"]


def hostile(answers: Callable[[socket.socket], None]) -> socket.socket:
    """The front end's side of a connection to a thread that answers."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            try:
                answers(theirs)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return ours


@pytest.mark.parametrize("seed", range(30))
def test_answers_without_sense_end_the_connection(seed: int) -> None:
    chance = random.Random(seed)

    def answers(link: socket.socket) -> None:
        while data := link.recv(4096):
            request = unpack("<I", data[:4])[0]
            good = pack("<IIIQ", request, 5, 8, 1 << 30 | 1 << 32 | chance.getrandbits(64))
            kind = chance.randrange(6)
            if kind == 0:
                good = chance.randbytes(20)
            elif kind == 1:
                good = pack("<III", request, 5, chance.choice([0, 4, 7, 9, 4096])) + bytes(4096)
            elif kind == 2:
                good = good[: chance.randrange(len(good))]
            fds = [0] * chance.randrange(3)
            socket.send_fds(link, [good], fds)
            if kind == 2:
                return

    before = len(os.listdir("/proc/self/fd"))
    link = hostile(answers)
    with pytest.raises(BackendError):
        session = Session(link)
        for _ in range(50):
            session.config(60)
            session.new_inflight(1, 64)
    link.close()
    wait(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_back_end_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtio.vhost_wire.PATIENCE", 0.2)

    def drip(link: socket.socket) -> None:
        link.recv(4096)
        while True:
            link.sendall(b"\1")
            time.sleep(0.06)

    for answers in (lambda link: time.sleep(5), drip):
        with pytest.raises(BackendError, match="does not answer"):  # a whole answer of such bytes would be none
            Session(hostile(answers))


def test_a_back_end_that_talks_unasked_is_left(ram: Ram, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with backend(tmp_path), disk(ram, tmp_path) as rig:
        rig.start()
        host: Backend = rig.device.host
        other, theirs = socket.socketpair()
        assert host.session is not None
        host.session.link.close()
        host.session.link = other
        theirs.sendall(b"boo")
        turn(host)
        assert host.session is None and "nobody asked" in capfd.readouterr().err
        theirs.close()
        wait(lambda: turn(host) or host.session is not None)
        assert request(rig, Kind.IN, 0, 512)[1] == bytes([OK])


def test_what_a_back_end_says_by_itself_is_answered() -> None:
    heard: list[bytes] = []

    def answers(link: socket.socket) -> None:
        while len((got := socket.recv_fds(link, 12, 4))[0]) == 12:
            data, fds, _, _ = got
            request, flags, size = unpack("<III", data)
            link.recv(size)
            if fds:
                channel = socket.socket(fileno=fds[0])
                channel.sendall(pack("<III", 2, 9, 0) + pack("<III", 99, 9, 8) + bytes(8) + pack("<III", 2, 1, 0))
                heard.append(channel.recv(20, socket.MSG_WAITALL) + channel.recv(20, socket.MSG_WAITALL))
            value = {1: 1 << 30 | 1 << 32, 15: 1 << 3 | 1 << 5 | 1 << 9}.get(request, 0)
            if flags & 8 or request in (1, 15):
                link.sendall(pack("<IIIQ", request, 5, 8, value))

    session = Session(hostile(answers))
    assert session.config_changed
    assert heard == [pack("<IIIQ", 2, 5, 8, 0) + pack("<IIIQ", 99, 5, 8, 1)]
    session.close()


@pytest.mark.parametrize("used", [(1, 5, 0), (60, 0, 0), (2, 0, 0)])
def test_a_back_end_that_gives_back_what_it_has_not_is_left(
    ram: Ram, tmp_path: Path, used: tuple[int, int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    """Index, head and length that it writes into a ring of ours; the request is then another's to do."""
    with backend(tmp_path) as process, disk(ram, tmp_path, 1, "packed") as rig:
        rig.start()
        host = rig.device.host
        process.send_signal(signal.SIGSTOP)
        rig.rings[0].add(pack("<IIQ", Kind.IN, 0, 0), 512, 1)
        rig.notify()
        index, head, written = used
        host.rings[0].used[:12] = pack("<HHII", 0, index, head, written)
        host.called.add(0)
        rig.transport.poll()
        assert host.session is None and "it gives back" in capfd.readouterr().err and not rig.needs_reset()
        process.send_signal(signal.SIGCONT)
        done(rig)
        assert len(rig.rings[0].collect()) == 1
