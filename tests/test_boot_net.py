"""Linux with a network card: two machines on one wire, and one that reaches the host and is reached from there."""

import contextlib
import functools
import hashlib
import http.server
import os
import random
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from console import COMMAND, Console, gone
from test_boot import PROMPT, TIMEOUT, TROUBLE, options
from test_netlinks import free_port

from smp.guest import APPEND, Guest, default_guest, run_script

pytestmark = pytest.mark.boot

MIB = 1 << 20


@pytest.fixture(scope="module")
def guest() -> Guest:
    return default_guest()


def ended(console: Console, exchanged: str) -> str:
    """What a machine printed whose script succeeded."""
    assert console.wait(TIMEOUT) == 0
    log = console.text()
    assert not TROUBLE.search(log), TROUBLE.findall(log)
    assert "hartbeat: exit status 0" in log
    assert exchanged in log
    return log


SERVER = """
ip addr add 10.1.0.1/24 dev eth0
head -c 3000000 /dev/urandom >/tmp/data; sha256sum </tmp/data
httpd -p 80 -h /tmp
until [ -e /tmp/end ]; do nc -l -p 81 >/tmp/end; sleep 0.2; done
cat /tmp/end
"""
CLIENT = """
ip addr add 10.1.0.2/24 dev eth0
until ping -c 1 -W 1 10.1.0.1 >/dev/null; do :; done
ping -c 3 -i 0.2 10.1.0.1 | grep loss
ping -c 1 -s 20000 10.1.0.1 | grep loss
until wget -q -O /tmp/data http://10.1.0.1/data; do sleep 0.2; done
sha256sum </tmp/data
cat /sys/class/net/eth0/address
until echo "goodbye from the other" | nc 10.1.0.1 81; do sleep 0.2; done
"""


@pytest.mark.parametrize("kind", ["stream", "dgram"])
def test_two_machines_on_one_wire(guest: Guest, tmp_path: Path, kind: str) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    if kind == "stream":
        ends = [f"stream,id=n,server={on},addr.type=unix,addr.path={a}" for on in ("on", "off")]
        ends[1] += ",reconnect-ms=100"
    else:
        both = (a, b), (b, a)
        ends = [f"dgram,id=n,local.type=unix,local.path={x},remote.type=unix,remote.path={y}" for x, y in both]
    card = "virtio-net-device,netdev=n"
    first = options(guest, 2, run_script(SERVER), "-netdev", ends[0], "-device", card)
    second = options(guest, 2, run_script(CLIENT), "-netdev", ends[1], "-device", card + ",mac=52:54:00:12:34:99")
    with Console(*first) as server, Console(*second) as client:
        for console in (server, client):
            console.close_input()
        while client.process.poll() is None:
            server.collect(0.02)
            client.collect(0.02)
        said = ended(client, "52:54:00:12:34:99")
        assert said.count(" 0% packet loss") == 2
        digest = next(line for line in said.splitlines() if line.endswith("  -"))
        assert digest in ended(server, "goodbye from the other")


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """A server on the host, and the file that it has."""
    data = random.Random(5).randbytes(4 * MIB)
    (tmp_path / "data").write_bytes(data)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, data
        server.shutdown()
        thread.join()


USER = """
until ip route | grep -q default; do sleep 0.1; done
ip addr show dev eth0 | grep -o 'inet 10[^ ]*'; ip route | grep default; cat /etc/resolv.conf
wget -q -O /tmp/data http://10.0.2.2:{port}/data; sha256sum </tmp/data
cat >/tmp/index.html <<X
hello from the guest
X
httpd -p 80 -h /tmp; echo listening
until [ -e /tmp/end ]; do nc -l -p 81 >/tmp/end; sleep 0.2; done
cat /tmp/end
"""


@pytest.mark.parametrize("mtu", ["", ",mtu=1500"])
def test_the_guest_gets_an_address_and_talks_to_the_host(guest: Guest, website: tuple[int, bytes], mtu: str) -> None:
    """By passt: DHCP, out to a server of the host, and in through a forwarded port in both directions."""
    port, data = website
    web, end = free_port(), free_port()
    nic = f"user,hostfwd=tcp:127.0.0.1:{web}-:80,hostfwd=tcp:127.0.0.1:{end}-:81{mtu}"
    with Console(*options(guest, 2, run_script(USER.format(port=port)), "-nic", nic)) as console:
        console.close_input()
        console.expect("listening", TIMEOUT)
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/", timeout=TIMEOUT) as answer:
            assert answer.read() == b"hello from the guest\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/data", timeout=TIMEOUT) as answer:
            assert answer.read() == data
        say_goodbye(console, int(end))
        log = ended(console, "goodbye from the host")
        assert hashlib.sha256(data).hexdigest() in log
        for line in ("inet 10.0.2.15/24", "default via 10.0.2.2"):
            assert line in log


def say_goodbye(console: Console, port: int) -> None:
    """passt accepts a connection before the guest listens, so once may not be enough."""
    while console.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as link:
            link.sendall(b"goodbye from the host\n")
        console.collect(0.3)


def test_a_guest_that_reboots_is_on_the_network_again(guest: Guest, website: tuple[int, bytes]) -> None:
    """passt and the connection to it stay; half a frame does not confuse them."""
    port, data = website
    get = f"until ip route | grep -q default; do sleep 0.1; done; wget -q -O - http://10.0.2.2:{port}/data | sha256sum"
    with Console(*options(guest, 1, APPEND, "-nic", "user,id=n")) as console:
        for _ in range(3):
            console.expect(PROMPT, TIMEOUT)
            console.send(f"{get}\n")
            console.expect(hashlib.sha256(data).hexdigest(), TIMEOUT)
            console.expect(PROMPT, TIMEOUT)
            # In the middle of a transfer, of which nobody waits for the end.
            console.send(f"(wget -q -O /dev/null http://10.0.2.2:{port}/data; wget -q http://10.0.2.2:{port}/data) &\n")
            console.send("reboot -f\n")
            console.expect("Linux version", TIMEOUT)
        console.expect(PROMPT, TIMEOUT)
        console.send("poweroff -f\n")
        assert console.wait(TIMEOUT) == 0
        assert "link is down" not in console.errors.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_passt_and_sockets_go_with_the_machine(guest: Guest, tmp_path: Path, number: int) -> None:
    """Also when the supervisor has no time to end them."""
    listen = f"stream,id=n,server=on,addr.type=unix,addr.path={tmp_path / 's'}"
    more = ("-nic", "user", "-netdev", listen, "-device", "virtio-net-device,netdev=n")
    with Console(*options(guest, 1, APPEND, *more)) as console:
        console.expect("Linux version", TIMEOUT)
        children = psutil.Process(console.process.pid).children()
        assert any(child.name().startswith("passt") for child in children)
        assert (tmp_path / "s").exists()
        console.process.send_signal(number)
        console.wait(TIMEOUT)
        assert gone(children) == []
        assert not (tmp_path / "s").exists()


# In a network namespace: a host with one card, and a name server that knows of an address for every name.
NAMED_HOST = """
import socket, subprocess, sys, threading
for line in ("tuntap add dev d0 mode tap", "addr add 192.0.2.1/24 dev d0", "link set d0 up", "link set lo up"):
    subprocess.run(["ip", *line.split()], check=True)
subprocess.run("ip route add default via 192.0.2.2".split(), check=True)
with open(sys.argv[1], "w") as resolv:
    resolv.write(f"nameserver {sys.argv[2]}\\n")
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[2], 53))
def serve():
    while True:
        asked, peer = server.recvfrom(512)
        answer = bytes.fromhex("c00c000100010000003c0004c0000263") if b"\\0\\1\\0\\1" in asked[12:] else b""
        server.sendto(asked[:2] + b"\\x81\\x80\\0\\1\\0" + bytes([bool(answer)]) + bytes(4) + asked[12:] + answer, peer)
threading.Thread(target=serve, daemon=True).start()
sys.exit(subprocess.run(sys.argv[3:]).returncode)
"""
NAMES = """
until ip route | grep -q default; do sleep 0.1; done
nslookup some.example
ping -c 1 -W 1 other.example | head -n 1
"""


def test_names_are_asked_of_the_hosts_name_server(guest: Guest, tmp_path: Path) -> None:
    if os.geteuid() or not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("a tap and a network namespace may not be had here; root may")
    command = ("unshare", "-n", "-m", sys.executable, "-c", NAMED_HOST, str(tmp_path / "resolv.conf"), "192.0.2.1")
    machine = options(guest, 1, run_script(NAMES), "-nic", "user")
    with Console(*machine, command=(*command, *COMMAND)) as console:
        console.close_input()
        log = ended(console, "some.example")
    assert "Address: 192.0.2.99" in log and "PING other.example (192.0.2.99)" in log, log[-1000:]


# In a network namespace: the other end of the tap with an address, a file to fetch, and the digest of what it is sent.
HOST = """
import hashlib, http.server, os, socket, subprocess, sys, threading
for line in ("tuntap add dev t0 mode tap multi_queue", "addr add 10.2.0.1/24 dev t0", "link set t0 up"):
    subprocess.run(["ip", *line.split()], check=True)
machine = subprocess.Popen(sys.argv[2:])
os.chdir(sys.argv[1])
server = http.server.ThreadingHTTPServer(("10.2.0.1", 80), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
upload = socket.create_server(("10.2.0.1", 99))
def take():
    link, digest = upload.accept()[0], hashlib.sha256()
    while data := link.recv(65536):
        digest.update(data)
    open("part", "w").write(digest.hexdigest())
    os.rename("part", "digest")
threading.Thread(target=take, daemon=True).start()
sys.exit(machine.wait())
"""
TAP = """
ip addr add 10.2.0.2/24 dev eth0
ls /sys/class/net/eth0/queues
until ping -c 1 -W 1 10.2.0.1 >/dev/null; do :; done
ping -c 2 -s 20000 10.2.0.1 | grep loss
for n in 1 2 3 4; do wget -q -O /tmp/$n http://10.2.0.1/data & done
wait
cat /tmp/1 /tmp/2 /tmp/3 /tmp/4 | tee /tmp/all | sha256sum
nc 10.2.0.1 99 </tmp/all
until wget -q -O - http://10.2.0.1/digest; do sleep 0.2; done
"""


@pytest.mark.parametrize("more", ["", ",gso=off,guest_tso4=off,guest_csum=off,csum=off", ",mrg_rxbuf=off"])
def test_a_tap_with_queue_pairs(guest: Guest, tmp_path: Path, more: str) -> None:
    if os.geteuid() or not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("a tap and a network namespace may not be had here; root may")
    data = random.Random(6).randbytes(3 * MIB)
    (tmp_path / "data").write_bytes(data)
    command = ("unshare", "-n", sys.executable, "-c", HOST, str(tmp_path), *COMMAND)
    netdev = ["-netdev", "tap,id=n,ifname=t0,queues=4,script=no,downscript=no"]
    card = ["-device", f"virtio-net-pci,netdev=n,mq=on,vectors=10{more}"]
    with Console(*options(guest, 4, run_script(TAP), *netdev, *card), command=command) as console:
        console.close_input()
        log = ended(console, " 0% packet loss")
    assert "rx-3" in log and "tx-3" in log
    digest = hashlib.sha256(data * 4).hexdigest()
    assert log.count(digest) == 2, (tmp_path / "digest").read_text()
