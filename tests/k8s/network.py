"""A cluster's network for the trial: a bridge, a namespace and address for each pod, DNS, virtual address.

The names of headless Services have the addresses of their ready pods. Another Service has a virtual address
behind which each connection goes to one ready pod, as kube-proxy does it.
"""

import asyncio
import contextlib
import itertools
import random
import shutil
import struct
import subprocess
from pathlib import Path

BRIDGE = "sfumato0"
HOST = "10.77.0.1"
VIRTUAL = "10.77.0.10"
DOMAIN = "sfumato.svc.cluster.local"
RESOLV = f"nameserver {HOST}\nsearch {DOMAIN} svc.cluster.local cluster.local\noptions ndots:5\n"
PASSWD = "root:x:0:0::/root:/bin/sh\nsfumato:x:10001:10001::/tmp:/sbin/nologin\n"


def ip(*arguments: str) -> None:
    """iproute2's ip."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """The bridge and the namespaces; `close` removes them."""

    def __init__(self) -> None:
        self._addresses = (f"10.77.{1 + i // 250}.{1 + i % 250}" for i in itertools.count())
        self._namespaces: set[str] = set()
        self.close()
        ip("link", "add", BRIDGE, "type", "bridge")
        for address in (f"{HOST}/16", f"{VIRTUAL}/32"):
            ip("address", "add", address, "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")

    def add(self, pod: str) -> str:
        """A namespace for the pod; returns its address."""
        address = next(self._addresses)
        files = Path("/etc/netns") / pod
        files.mkdir(parents=True, exist_ok=True)
        (files / "resolv.conf").write_text(RESOLV)
        (files / "passwd").write_text(PASSWD)
        ip("netns", "add", pod)
        self._namespaces.add(pod)
        link = f"sf{address.replace('.', '')[4:]}"
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", pod)
        ip("link", "set", link, "master", BRIDGE, "up")
        inside = ("-n", pod)
        ip(*inside, "address", "add", f"{address}/16", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "route", "add", "default", "via", HOST)
        return address

    def remove(self, pod: str) -> None:
        """The pod's namespace, and with it its address."""
        self._namespaces.discard(pod)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "delete", pod)
        shutil.rmtree(Path("/etc/netns") / pod, ignore_errors=True)

    def close(self) -> None:
        """Removes all."""
        for pod in list(self._namespaces):
            self.remove(pod)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "delete", BRIDGE)


class Names(asyncio.DatagramProtocol):
    """A DNS of A records: name to the addresses that it has now."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}

    async def listen(self) -> None:
        """Serves on the bridge's address."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(HOST, 53))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers one question."""
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode().lower())
            at += 1 + length
        question = data[12 : at + 5]
        (kind,) = struct.unpack("!H", data[at + 1 : at + 3])
        name = ".".join(labels).removesuffix(f".{DOMAIN}")
        found = self.addresses.get(name)
        ips = random.sample(found, len(found)) if found and kind == 1 else []
        code = 0 if found else 3
        head = data[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(ips), 0, 0)
        answers = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + bytes(map(int, address.split(".")))
            for address in ips
        )
        self._transport.sendto(head + question + answers, addr)


class VirtualAddress:
    """Each connection goes to one of the ready pods, for as long as it lasts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pods: list[str] = []

    async def listen(self) -> None:
        """Serves on the virtual address."""
        self._server = await asyncio.start_server(self._connect, VIRTUAL, self.port)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, IndexError):
            there = await asyncio.open_connection(random.choice(self.pods), self.port)
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
