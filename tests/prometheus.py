"""The real Prometheus and promtool, Debian's package `prometheus`, and the expressions that we give them."""

import contextlib
import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sfumato_client.stack import free_port

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "sfumato.json"


def program(name: str) -> str:
    """A program's path; skips the test without it, but fails it in CI, which installs it."""
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is missing: apt-get install prometheus (CI does)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return path


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that show something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expression(target: Mapping[str, str], interval: str = "1m") -> str:
    """A target's query, as Grafana would send it."""
    return target["expr"].replace("$__rate_interval", interval)


@contextlib.contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, list[str]], interval: str) -> Iterator[str]:
    """Scrapes the targets (host:port by job) and runs our rules. Yields its URL."""
    jobs = [{"job_name": job, "static_configs": [{"targets": hosts}]} for job, hosts in targets.items()]
    rules = [str(RULES / name) for name in ("rules.yaml", "alerts.yaml")]
    timing = {"scrape_interval": interval, "evaluation_interval": interval}
    config = folder / "prometheus.yaml"
    config.write_text(json.dumps({"global": timing, "rule_files": rules, "scrape_configs": jobs}))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, path: str, **parameters: str) -> Any:
    """The `data` of an answer of Prometheus' API."""
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=30) as response:
        return json.load(response)["data"]
