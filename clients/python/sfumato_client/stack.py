"""All services on this machine, each its own process."""

import contextlib
import functools
import importlib.util
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

READY_SECONDS = 600.0  # a first start exports graphs, and the machine may be busy; a death is seen at once
STOP_SECONDS = 40.0
RESTART_SECONDS = 0.5
LISTENING_PORTS = range(20_000, 32_000)  # Linux takes those of outgoing connections from 32,768 up
PORTS_OF_A_PROCESS = 500
_claims: list[socket.socket] = []  # on this process's ports; kept open
# What a service's process runs: it asks Linux for SIGTERM when the launcher dies, even by SIGKILL (prctl
# option 1, PR_SET_PDEATHSIG), then becomes the service. Not a preexec_fn: that would run Python between
# fork and exec, which crashes now and then where the launcher has gRPC's threads.
LAUNCH = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
# How often an idle OpenMP thread looks for work before it sleeps. The default keeps one service's threads
# spinning on the cores that the next service of a guided step needs.
OPENMP_SPINS = "30000"
MODEL_NICENESS = 10  # of all services but the gateway


class StackError(Exception):
    """The services could not be started; the message says which and why."""


@dataclass
class Service:
    """One service: where it listens, and its process."""

    name: str
    port: int
    environment: dict[str, str]
    log: Path
    health_port: int = 0  # where health is asked in plaintext; 0: at port
    metrics_port: int = 0  # 0: none
    process: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def target(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def health_target(self) -> str:
        """host:port where health is asked."""
        return f"127.0.0.1:{self.health_port or self.port}"

    def start(self) -> None:
        """Starts the process; it dies with this one."""
        module = self.name.rstrip("0123456789")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, f"sfumato.{module}"],
                env={"GOMP_SPINCOUNT": OPENMP_SPINS, **os.environ, **self.environment},
                stderr=log,
                stdout=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the launcher, which then drains
            )
        if module != "gateway":
            give_way(self.process.pid)

    def last_lines(self, count: int = 8) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


def give_way(pid: int) -> None:
    """Lets the gateway answer at once while models have all cores: it needs little, but needs it now.

    Where Linux groups processes by session, a process's own priority counts only within its group.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, MODEL_NICENESS)
        Path(f"/proc/{pid}/autogroup").write_text(str(MODEL_NICENESS))


@dataclass
class Stack:
    """The running services."""

    family: Path
    gateway: Service
    encoder: Service
    decoder: Service
    denoisers: list[Service]
    editor: Service | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def target(self) -> str:
        """host:port of the gateway."""
        return self.gateway.target

    @property
    def services(self) -> list[Service]:
        """All of them, the gateway first."""
        editor = [self.editor] if self.editor else []
        return [self.gateway, self.encoder, self.decoder, *self.denoisers, *editor]

    def ready_line(self) -> str:
        """One line for people and scripts."""
        parts = ", ".join(f"{s.name} {s.target} (pid {s.process.pid})" for s in self.services[1:])
        gateway = f"gateway {self.target} (pid {self.gateway.process.pid})"
        return f"ready: {gateway}, family {self.family.name}, {parts}"

    def watch(self) -> None:
        """Restarts services that die, until `stopping` is set."""
        while not self.stopping.wait(RESTART_SECONDS):
            for service in self.services:
                code = service.process.poll()
                if code is not None and not self.stopping.is_set():
                    print(f"{service.name} ended with {code}; starting it again", file=sys.stderr)
                    service.start()

    def stop(self) -> None:
        """Drains the gateway, then stops the model services; kills what does not end in time."""
        self.stopping.set()
        end = time.monotonic() + STOP_SECONDS
        for group in ([self.gateway], self.services[1:]):
            started = [service for service in group if hasattr(service, "process")]
            for service in started:
                if service.process.poll() is None:
                    service.process.send_signal(signal.SIGTERM)
            for service in started:
                try:
                    service.process.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    service.process.kill()
                    service.process.wait()


@contextlib.contextmanager
def local_stack(
    family: Path,
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    denoisers: int = 1,
    log_dir: Path,
    editor: bool = False,
    metrics: bool = False,
    families: Path | None = None,
    settings: dict[str, str] | None = None,
) -> Iterator[Stack]:
    """Runs all services until the block ends.

    Args:
        family: folder of the model family.
        port: of the gateway; 0 takes a free one.
        host: that the gateway listens on; the model services stay on loopback.
        denoisers: how many denoiser processes.
        log_dir: folder for one log file per service.
        editor: whether to start the editor; its state lies where SFUMATO_EDITOR_STATE_DIR says.
        metrics: whether each service has a Prometheus port, in its metrics_port.
        families: folder of further families, which may be loaded at run time.
        settings: further environment variables of the services.

    Raises:
        StackError: the gateway's address is not to be had, or a service died or was not ready in time; then
            the message has the end of its log.
    """
    if importlib.util.find_spec("sfumato") is None:
        raise StackError("the services are not installed here: run `make setup`, or give --target HOST:PORT")
    if not (family / "model_index.json").is_file():
        raise StackError(f"{family} is no model family: it has no model_index.json; give --family DIR")
    if port:
        _check_address(host, port)
    log_dir.mkdir(parents=True, exist_ok=True)
    if families is not None:
        own = {f"SFUMATO_{name}_FAMILIES": str(families) for name in ("ENCODER", "DECODER", "DENOISER")}
        settings = {**own, **(settings or {})}
    stack = _configure(family, port, host, denoisers, log_dir, editor, settings or {})
    for service in stack.services if metrics else ():
        service.metrics_port = free_port()
        service.environment[f"{_prefix(service.name)}_METRICS_PORT"] = str(service.metrics_port)
    try:
        for service in stack.services:
            service.start()
        _wait_until_ready(stack)
        yield stack
    finally:
        stack.stop()


def _check_address(host: str, port: int) -> None:
    """Said now: the gateway would find it out when all services have started."""
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        raise StackError(f"the gateway cannot listen on {host}:{port}: {error.strerror}") from error


def _configure(
    family: Path, port: int, host: str, denoisers: int, log_dir: Path, editor: bool, settings: dict[str, str]
) -> Stack:
    names = ["encoder", "decoder", *(f"denoiser{i}" for i in range(denoisers)), *["editor"] * editor]
    models = {}
    for name in names:
        free = free_port()
        prefix = _prefix(name)
        own = {f"{prefix}_PORT": str(free), f"{prefix}_FAMILY": str(family)}
        models[name] = _service(name, free, settings, own, log_dir)
    gateway = {
        "SFUMATO_GATEWAY_HOST": host,
        "SFUMATO_GATEWAY_PORT": str(port or (port := free_port())),
        "SFUMATO_GATEWAY_ENCODER_TARGET": models["encoder"].target,
        "SFUMATO_GATEWAY_DECODER_TARGET": models["decoder"].target,
        "SFUMATO_GATEWAY_DENOISER_TARGETS": ",".join(models[f"denoiser{i}"].target for i in range(denoisers)),
        "SFUMATO_GATEWAY_EDITOR_TARGET": models["editor"].target if editor else "",
    }
    door = _service("gateway", port, settings, gateway, log_dir)
    replicas = [models[f"denoiser{i}"] for i in range(denoisers)]
    return Stack(family, door, models["encoder"], models["decoder"], replicas, models.get("editor"))


def _prefix(name: str) -> str:
    """Of a service's environment variables."""
    return f"SFUMATO_{name.rstrip('0123456789').upper()}"


def _service(name: str, port: int, settings: dict[str, str], own: dict[str, str], log_dir: Path) -> Service:
    """A service that is not started; reflection is on, for this is a person's machine."""
    prefix = _prefix(name)
    environment = {f"{prefix}_REFLECTION": "true", **settings, **own}
    health_port = 0
    if f"{prefix}_TLS_CERT" in {**os.environ, **environment}:
        health_port = free_port()
        environment[f"{prefix}_HEALTH_PORT"] = str(health_port)
    return Service(name, port, environment, log_dir / f"{name}.log", health_port)


def _wait_until_ready(stack: Stack) -> None:
    end = time.monotonic() + READY_SECONDS
    for service in reversed(stack.services):
        while not is_serving(service.health_target):
            dead = next((s for s in stack.services if s.process.poll() is not None), None)
            if dead is not None:
                raise StackError(f"{dead.name} ended with {dead.process.poll()}:\n{dead.last_lines()}")
            if time.monotonic() > end:
                late = f"{service.name} was not ready after {READY_SECONDS:.0f} s"
                raise StackError(f"{late}:\n{service.last_lines()}")
            time.sleep(0.1)


def is_serving(target: str, service: str = "") -> bool:
    """Whether the health service says SERVING."""
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.RpcError:
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def free_port() -> int:
    """A loopback port that nobody listens on.

    Not of the range that the kernel takes for outgoing connections: a service opens its port seconds later,
    and by then one of those may have it; nor, for the same reason, one that this or another process gave just
    now. Of a dozen drawn at random two are the same once in 180 times.
    """
    while True:
        port = next(_own_ports())
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@functools.cache
def _own_ports() -> Iterator[int]:
    """Ports that no other process gives, each once before any comes again."""
    blocks = [
        LISTENING_PORTS[start : start + PORTS_OF_A_PROCESS]
        for start in range(0, len(LISTENING_PORTS), PORTS_OF_A_PROCESS)
    ]
    for block in blocks:
        claim = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):  # another process has it, or this is not Linux
            claim.bind(f"\0sfumato-ports-{block.start}")  # a name that is gone when the process is
            _claims.append(claim)
            return itertools.cycle(block)
        claim.close()
    return itertools.cycle(secrets.SystemRandom().sample(LISTENING_PORTS, len(LISTENING_PORTS)))
