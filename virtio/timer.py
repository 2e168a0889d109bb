"""Timers that the event loop waits for."""

import ctypes
import os
import select

from virtio.host import Host

CLOCK_MONOTONIC, TFD_FLAGS = 1, os.O_NONBLOCK | os.O_CLOEXEC


def new_timer() -> int:
    """A timerfd's descriptor; it is off."""
    return int(ctypes.CDLL(None).timerfd_create(CLOCK_MONOTONIC, TFD_FLAGS))


def set_timer(timer: int, seconds: float) -> None:
    """Have a timerfd rung once (timerfd_settime(2): interval, then value)."""
    whole = int(seconds)
    spec = (ctypes.c_long * 4)(0, 0, whole, int((seconds - whole) * 1e9))
    ctypes.CDLL(None).timerfd_settime(timer, 0, spec, None)


class Timer(Host):
    """Rings once after each `wake_in`."""

    def __init__(self) -> None:
        self.timer = -1
        self.due = False  # the time is over that somebody waited for

    def wake_in(self, seconds: float) -> None:
        """Ring after so long and not at another time that was set before."""
        if self.timer < 0:
            self.timer = new_timer()
        set_timer(self.timer, seconds + 1e-6)  # a timer of 0 is off

    def cancel(self) -> None:
        """Do not ring."""
        self.due = False
        if self.timer >= 0:
            set_timer(self.timer, 0)

    def interest(self) -> dict[int, int]:
        return {self.timer: select.EPOLLIN} if self.timer >= 0 else {}

    def ready(self, fd: int, events: int) -> None:
        try:
            os.read(fd, 8)
        except BlockingIOError:
            return
        self.due = True

    def stop(self) -> None:
        if self.timer >= 0:
            self.let_go(self.timer)
            os.close(self.timer)
            self.timer = -1
