"""`make k8s-trial`: an overlay's pods as processes here, and what an operator does to them, under load.

Needs root, iproute2 and Linux namespaces. Example: python -m tests.k8s.trial --clients 8
"""

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from tests.k8s.cluster import Cluster
from tests.k8s.load import Load
from tests.k8s.manifests import read
from tests.k8s.tools import K8S, render
from tests.tiny_family import save_tiny_family

# A graph of ONNX Runtime is exported by each pod anew; with tiny weights torch is ready sooner.
# All pods share one machine, so that more threads only cost.
SETTINGS = {
    f"SFUMATO_{service}_{name}": value
    for service in ("ENCODER", "DECODER", "DENOISER", "EDITOR")
    for name, value in (("ENGINE", "torch"), ("NUM_THREADS", "1"))
}


async def phase(name: str, cluster: Cluster, load: Load, work: Awaitable[None]) -> dict[str, Any]:
    """Does it under load and tells what came of the requests meanwhile."""
    load.next_phase()
    begun = time.monotonic()
    await work
    tally = dataclasses.asdict(load.next_phase())
    result = {"phase": name, "seconds": round(time.monotonic() - begun, 1), **tally}
    result["slowest_seconds"] = round(result["slowest_seconds"], 1)
    result |= {
        "killed": cluster.num_killed,
        "restarted": cluster.num_restarts + sum(pod.num_restarts for pod in cluster.pods),
    }
    print(json.dumps(result), flush=True)
    return result


async def trial(cluster: Cluster, num_clients: int) -> list[dict[str, Any]]:
    """All phases."""
    begun = time.monotonic()
    await cluster.start()
    print(f"{len(cluster.pods)} pods ready after {time.monotonic() - begun:.0f} s", flush=True)
    load = Load(cluster.target, num_clients, {"tls_ca": cluster.secrets.ca} if cluster.secrets.names else {})
    await load.learn()
    load.start()
    results = []
    try:
        results.append(await phase("restart everything", cluster, load, restarted(cluster)))
        results.append(await phase("drain node-a", cluster, load, cluster.drain("node-a")))
        for count in (1, 3, 1):
            work = cluster.scale("denoiser", count)
            results.append(await phase(f"scale denoiser to {count}", cluster, load, work))
        if cluster.secrets.names:
            for number in (1, 2, 3):
                work = rotated(cluster)
                results.append(await phase(f"rotate certificates, {number}", cluster, load, work))
        results.append(await phase("undisturbed", cluster, load, asyncio.sleep(20)))
    finally:
        await load.stop()
    return results


async def restarted(cluster: Cluster) -> None:
    """`kubectl rollout restart deployment,statefulset`: all workloads, each by its own rules."""
    await asyncio.gather(*(cluster.restart(name) for name in cluster.manifests.workloads))


async def rotated(cluster: Cluster) -> None:
    """All certificates replaced, and time for calls with the new ones."""
    cluster.secrets.rotate()
    await asyncio.sleep(20)


async def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The trial in its folder."""
    manifests = read(render(K8S / "overlays" / options.overlay, ["tls"] if options.tls else []))
    cluster = Cluster(manifests, folder, folder / "tiny", SETTINGS)
    try:
        return await trial(cluster, options.clients)
    finally:
        await cluster.close()


def main() -> None:
    """Exit code 1 where a request failed or was wrong, or a pod had to be killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overlay", default="cpu", help="Folder in k8s/overlays.")
    parser.add_argument("--clients", type=int, default=8, help="Clients at one time; one of them edits.")
    parser.add_argument("--tls", action="store_true", help="With component tls; also rotates certificates.")
    parser.add_argument("--output", type=Path, help="JSON file for the results.")
    options = parser.parse_args()
    if os.geteuid() or not shutil.which("ip"):
        sys.exit("the trial makes network namespaces: run it as root, with iproute2 installed")
    with tempfile.TemporaryDirectory(prefix="sfumato-trial-") as folder:
        Path(folder).chmod(0o755)
        family = save_tiny_family(Path(folder) / "tiny")
        subprocess.run(["chmod", "-R", "a+rX", family], check=True)  # safetensors' files are their owner's
        results = asyncio.run(run(options, Path(folder)))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1))
    bad = [r for r in results if r["failed"] or r["wrong"] or r["killed"] or r["restarted"]]
    done = sum(r["num_done"] for r in results)
    edits, failed = sum(r["num_edits"] for r in results), sum(len(r["failed"]) for r in results)
    wrong = sum(len(r["wrong"]) for r in results)
    print(f"{done} images and {edits} edits, {failed} failed, {wrong} wrong")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
