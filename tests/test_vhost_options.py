"""What the options of vhost-user devices may say, and what is told when they can't be."""

from pathlib import Path

import pytest
from test_vhost_user import backend, open_disk, parsed

from smp.config_check import check
from smp.cpu import ConfigError


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("-device vhost-user-blk-device", "chardev=ID"),
        ("-device vhost-user-blk-pci,chardev=c0", "no such chardev c0 socket,path=FILE"),
        ("-device vhost-user-blk-pci,chardev=c0 -chardev null,id=c0", "null takes a socket"),
        ("-device vhost-user-blk-pci,chardev=c0 -chardev socket,id=c0,path=/none", "/none start the back-end first"),
        ("-device vhost-user-blk-pci,chardev=c0 -chardev socket,id=c0,path=x,server=on", "server=on server=off"),
        ("-device vhost-user-device,chardev=c0", "virtio-id=NUMBER"),
        ("-device vhost-user-device-pci,chardev=c0,virtio-id=4,vq_size=48", "vq_size=48 power"),
        ("-device vhost-user-device,chardev=c0,virtio-id=4,config_size=257", "config_size=257 256"),
        ("-device vhost-user-rng-pci", "chardev=ID"),
        ("-device vhost-user-scsi,chardev=c,num_queues=0", "num_queues=0 32"),
        ("-device vhost-user-gpu-pci,chardev=c", "vhost-user-gpu-pci display"),
        ("-device vhost-user-blk-pci,chardev=c0,num-queues=33 -chardev socket,id=c0,path=x", "33 32"),
        ("-device vhost-user-fs-pci,chardev=c0,num-request-queues=0 -chardev socket,id=c0,path=x", "queues=0 32"),
        ("-device vhost-user-fs-pci,chardev=c0 -chardev socket,id=c0,path=x", "tag=NAME 36"),
        ("-drive file=x,format=qcow3", "qcow3"),
        ("-netdev vhost-user,id=n -device virtio-net,netdev=n", "chardev"),
        ("-netdev vhost-user,id=n,chardev=c -device virtio-net,netdev=n", "-netdev chardev=c socket,path=FILE"),
        (
            "-chardev socket,id=c,path=/dev/null -netdev vhost-user,id=n,chardev=c "
            "-netdev hubport,id=h,hubid=1,netdev=n",
            "hubport netdev=n another",
        ),
    ],
)
def test_what_can_not_be_is_one_line(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(parsed(text))
    for word in named.split():
        assert word in str(error.value)


def test_queues_that_a_back_end_has_not_are_refused(tmp_path: Path) -> None:
    with backend(tmp_path), pytest.raises(ConfigError, match="has 4 queues, not 5"):
        open_disk(tmp_path, queues=5)


def test_a_back_end_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start the back-end first"):
        open_disk(tmp_path)
