"""virtio-rng (virtio 1.2, 5.4): the host's random bytes."""

import os

from virtio.device import Device

MOST = 65536  # bytes a request is given at once; the driver asks again for more


class Rng(Device):
    """An entropy source."""

    kind = 4
    name = "rng"
    queue_sizes = (64,)

    def handle(self, index: int) -> None:
        for request in self.queues[index]:
            request.done(request.write(os.urandom(min(MOST, sum(map(len, request.writable))))))
