"""A pod as a process of this machine, as its manifest says: its own network, a read-only root, its user.

This checkout's environment stands for the images. Nothing stands for limits of memory and processor, and
nothing for seccomp.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.k8s.manifests import Workload, environment, mounts
from tests.k8s.network import Network

ROOT = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
# What stands for an image's files, read-only; links of the distribution are made again.
SYSTEM = ("usr", "etc", "bin", "sbin", "lib", "lib64", "proc", "sys", "dev")


class Pod:
    """One pod, from its start to its end."""

    def __init__(
        self, name: str, node: str, workload: Workload, network: Network, folder: Path, family: Path,
        settings: dict[str, str], secrets: Path,
    ) -> None:  # fmt: skip
        self.name, self.node, self.workload, self.folder = name, node, workload, folder
        self._network, self._family, self._settings, self._secrets = network, family, settings, secrets
        self.started, self.ready, self.terminating, self.killed = False, False, False, False
        self.num_restarts, self.revision = 0, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._prober: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Gets an address, runs the init containers, then the service, then the probes."""
        self.address = self._network.add(self.name)
        (self.folder / "root").mkdir(parents=True, exist_ok=True)
        for container in self.workload.template.get("initContainers", []):
            process = self._run(container)
            if code := await asyncio.to_thread(process.wait):
                raise RuntimeError(f"{self.name}: {container['name']} ended with {code}: {self.log()}")
        self._process = self._run(self.workload.container)
        self._prober = asyncio.create_task(self._probe())

    def _run(self, container: dict[str, Any]) -> "subprocess.Popen[bytes]":
        context = {**self.workload.template["securityContext"], **container["securityContext"]}
        image = container["image"].partition(":")[0].removeprefix("sfumato/")
        command = container.get("command") or ["python", "-m", f"sfumato.{image}"]
        user = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", "--clear-groups"]
        bounds = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        inside = ["chroot", str(self.folder / "root"), "setpriv", *user, *bounds, *command]
        script = "\n".join([*self._mounts(container, image, context), f"exec {shlex.join(inside)}"])
        values = environment(container, self.name) | self._settings
        path = f"{Path(sys.prefix) / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--mount", "--propagation", "private",
                 "sh", "-ec", script],
                env={"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **values},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _mounts(self, container: dict[str, Any], image: str, context: dict[str, Any]) -> list[str]:
        """Shell lines that make the container's root folder."""
        root = self.folder / "root"
        lines = [f"mount -t tmpfs -o mode=755 tmpfs {root}"]
        for name in SYSTEM:
            if Path("/", name).is_symlink():
                lines.append(f"cp -P /{name} {root}/{name}")
            elif Path("/", name).exists():
                lines.append(f"mkdir {root}/{name}; mount --rbind /{name} {root}/{name}")
        python = {Path(sys.base_prefix), Path(sys.prefix), ROOT, *map(Path, sys.path)}
        shown = {path: path for path in python if path.is_dir() and not path.is_relative_to("/usr")}
        if image == "family-copy":
            shown[Path("/family")] = self._family
        for place, source in sorted(shown.items()):
            lines.append(f"mkdir -p {root}{place}; mount --bind -o ro {source} {root}{place}")
        for place, volume in mounts(container).items():
            source = self._volume(volume, context)
            lines.append(f"mkdir -p {root}{place}; mount --bind {source} {root}{place}")
        if context["readOnlyRootFilesystem"]:
            lines.append(f"mount -o remount,ro {root}")
        return lines

    def _volume(self, name: str, context: dict[str, Any]) -> Path:
        """A claim's folder and a Secret outlive the pod, an empty folder ends with it."""
        definition = next((v for v in self.workload.template["volumes"] if v["name"] == name), {})
        if "secret" in definition:
            return self._secrets / str(definition["secret"]["secretName"])
        claimed = name in self.workload.claims
        path = self.folder.parent / f"claim-{name}-{self.name}" if claimed else self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, 0, context["fsGroup"])
        path.chmod(0o2775)
        return path

    async def _probe(self) -> None:
        start = self.workload.probe("startupProbe")
        await self._until(start)
        self.started = True
        live = asyncio.create_task(self._keep_alive())
        try:
            probe, failures = self.workload.probe("readinessProbe"), 0
            while True:
                failures = 0 if await self._asks(probe) else failures + 1
                self.ready = failures < probe["failureThreshold"] if self.ready else not failures
                await asyncio.sleep(probe["periodSeconds"])
        finally:
            live.cancel()

    async def _until(self, probe: dict[str, Any]) -> None:
        for _ in range(probe["failureThreshold"]):
            if await self._asks(probe):
                return
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._process.poll()}: {self.log()}")
            await asyncio.sleep(probe["periodSeconds"])
        raise RuntimeError(f"{self.name} did not start: {self.log()}")

    async def _keep_alive(self) -> None:
        probe, failures = self.workload.probe("livenessProbe"), 0
        while not self.terminating:
            await asyncio.sleep(probe["periodSeconds"])
            failures = 0 if await self._asks(probe) else failures + 1
            if failures == probe["failureThreshold"] and self._process is not None:
                self.num_restarts += 1
                self._process.kill()
                self._process = self._run(self.workload.container)

    async def _asks(self, probe: dict[str, Any]) -> bool:
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        async with grpc.aio.insecure_channel(f"{self.address}:{probe['grpc']['port']}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                response = await stub.Check(request, timeout=probe["timeoutSeconds"])
                return bool(response.status == SERVING)
        return False

    async def until_ready(self) -> None:
        """Returns when the readiness probe has passed; raises what stopped it."""
        while not self.ready:
            if self._prober is not None and self._prober.done():
                self._prober.result()
            await asyncio.sleep(0.2)

    async def terminate(self) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace period is over."""
        self.terminating, self.ready = True, False
        end = time.monotonic() + self.workload.template["terminationGracePeriodSeconds"]
        await asyncio.sleep(self.workload.pre_stop_seconds)
        if self._prober is not None:
            self._prober.cancel()
        self.ready = False
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, end - time.monotonic())
        except subprocess.TimeoutExpired:
            self.killed = True
            self.kill()
        self._network.remove(self.name)
        shutil.rmtree(self.folder / "volumes", ignore_errors=True)

    def kill(self) -> None:
        """At once, for a trial that ends."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Its end."""
        return (self.folder / "log").read_text(errors="replace")[-1500:]
