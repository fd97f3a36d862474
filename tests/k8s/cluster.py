"""What a cluster's controllers do, for the trial: replicas, endpoints, rollouts, evictions, scaling."""

import asyncio
import contextlib
import itertools
from pathlib import Path

from tests.k8s.manifests import Manifests, Workload
from tests.k8s.network import VIRTUAL, Names, Network, VirtualAddress
from tests.k8s.pods import Pod
from tests.k8s.secrets import Secrets

NODES = ("node-a", "node-b")


class Cluster:
    """Pods of all workloads over two nodes."""

    def __init__(self, manifests: Manifests, folder: Path, family: Path, settings: dict[str, str]) -> None:
        self.manifests, self.folder, self.family, self.settings = manifests, folder, family, settings
        self.secrets = Secrets(folder / "secrets", list(manifests.secrets))
        self.network, self.names = Network(), Names()
        (port,) = (p["port"] for p in manifests.services["gateway"]["ports"] if p["name"] == "grpc")
        self.door = VirtualAddress(port)
        self.target = f"{VIRTUAL}:{port}"
        self.pods: list[Pod] = []
        self.cordoned: set[str] = set()
        self.num_killed, self.num_restarts = 0, 0
        self._revisions = dict.fromkeys(manifests.workloads, 0)
        self._ids = itertools.count()
        self._ending: set[asyncio.Task[None]] = set()
        self._controller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """All workloads, ready."""
        await self.names.listen()
        await self.door.listen()
        self._controller = asyncio.create_task(self._publish())
        for workload in self.manifests.workloads.values():
            for _ in range(workload.replicas):
                await self.create(workload)
        await asyncio.gather(*(pod.until_ready() for pod in self.pods))

    async def _publish(self) -> None:
        """Ready pods' addresses into the DNS and behind the virtual address, as endpoint slices are."""
        while True:
            for name, service in self.manifests.services.items():
                ready = [pod.address for pod in self.of(name) if pod.ready]
                if service.get("clusterIP") == "None":
                    self.names.addresses[name] = ready
                else:
                    self.names.addresses[name], self.door.pods = [VIRTUAL], ready
            await asyncio.sleep(0.2)

    def of(self, name: str) -> list[Pod]:
        """The workload's pods that are not terminating, the oldest first."""
        return [pod for pod in self.pods if pod.workload.name == name and not pod.terminating]

    async def create(self, workload: Workload, name: str = "") -> Pod:
        """A pod on the node that has the fewest of its workload's revision."""
        revision = self._revisions[workload.name]
        alike = [pod.node for pod in self.of(workload.name) if pod.revision == revision]
        node = min((node for node in NODES if node not in self.cordoned), key=alike.count)
        stateful = workload.kind == "StatefulSet"
        name = name or (f"{workload.name}-0" if stateful else f"{workload.name}-{next(self._ids)}")
        folder = self.folder / (f"{name}-{next(self._ids)}" if stateful else name)
        pod = Pod(name, node, workload, self.network, folder, self.family, self.settings, self.secrets.folder)
        pod.revision = revision
        self.pods.append(pod)
        await pod.start()
        return pod

    def end(self, pod: Pod) -> "asyncio.Task[None]":
        """Terminates the pod; it is out of the endpoints at once."""
        pod.terminating, pod.ready = True, False
        task = asyncio.create_task(self._end(pod))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _end(self, pod: Pod) -> None:
        await pod.terminate()
        self.num_killed += pod.killed
        self.num_restarts += pod.num_restarts
        self.pods.remove(pod)

    async def settled(self) -> None:
        """Returns when no pod is terminating any more."""
        await asyncio.gather(*self._ending)

    async def restart(self, name: str) -> None:
        """`kubectl rollout restart`, within the surge and the unavailability that the manifest allows."""
        workload = self.manifests.workloads[name]
        self._revisions[name] += 1
        for pod in self.of(name):
            if workload.max_surge:
                await (await self.create(workload)).until_ready()
                self.end(pod)
            else:
                await self.replace(pod)
        await self.settled()

    async def replace(self, pod: Pod) -> None:
        """Ends a pod, then starts its successor; a StatefulSet's has the same name and volume."""
        ended = self.end(pod)
        if pod.workload.kind == "StatefulSet":
            await ended
        await (await self.create(pod.workload)).until_ready()

    async def drain(self, node: str) -> None:
        """`kubectl drain`: evicts all pods of a node as their disruption budgets allow."""
        self.cordoned.add(node)
        leaving = [pod for pod in self.pods if pod.node == node and not pod.terminating]
        await asyncio.gather(*(self._evict(pod) for pod in leaving))
        await self.settled()
        self.cordoned.discard(node)

    async def _evict(self, pod: Pod) -> None:
        name = pod.workload.name
        wanted, allowed = pod.workload.replicas, self.manifests.max_unavailable[name]
        while pod.ready and sum(other.ready for other in self.of(name)) <= wanted - allowed:
            await asyncio.sleep(0.2)
        await self.replace(pod)

    async def scale(self, name: str, replicas: int) -> None:
        """`kubectl scale`; the youngest go first."""
        workload = self.manifests.workloads[name]
        while len(self.of(name)) < replicas:
            await self.create(workload)
        await asyncio.gather(*(pod.until_ready() for pod in self.of(name)))
        for pod in self.of(name)[replicas:]:
            self.end(pod)
        await self.settled()

    async def close(self) -> None:
        """Ends everything."""
        for task in (self._controller, *self._ending):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for pod in self.pods:
            pod.kill()
        self.network.close()
