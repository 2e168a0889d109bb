"""-device virtio-vsock-device: its properties, over values only."""

import os

from smp.cpu import ConfigError

VSOCK = "virtio-vsock-device"
OF_VSOCK = {
    "guest-cid": "the guest's address, 3 to 4294967294 (needed)",
    "path": "unix socket at which the host reaches the guest: CONNECT PORT; PATH_PORT is one that the guest reaches "
    "(needed)",
    "id": "name",
}
KERNELS = "vhost-vsock"  # QEMU's, on the host kernel's /dev/vhost-vsock
FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE
PATH_BYTES = 107 - len("_4294967295")  # unix(7), with the longest port


def instead(driver: str) -> str:
    """What to use in place of QEMU's device, or ''."""
    if not driver.startswith(KERNELS):
        return ""
    return f"; the host kernel's vsock is not used: give {VSOCK},guest-cid=N,path=SOCKET"


def check_vsock(given: dict[str, str]) -> None:
    """The properties of one -device; `ConfigError` for what can't be."""
    for name, what in (("guest-cid", "N"), ("path", "SOCKET")):
        if not given.get(name):
            raise ConfigError(f"-device {VSOCK}: needs {name}={what}")
    cid = given["guest-cid"]
    if not (cid.isascii() and cid.isdigit() and FIRST_CID <= int(cid[:20]) <= LAST_CID):
        raise ConfigError(f"-device {VSOCK},guest-cid={cid}: must be {FIRST_CID} to {LAST_CID}")
    if len(os.fsencode(given["path"])) > PATH_BYTES:
        raise ConfigError(f"-device {VSOCK},path={given['path']}: has over {PATH_BYTES} bytes; shorten it")
