"""Rendered manifests as the trial reads them: workloads, services, disruption budgets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NAME = "app.kubernetes.io/name"


@dataclass(frozen=True)
class Workload:
    """A Deployment or StatefulSet."""

    name: str
    kind: str
    replicas: int
    template: dict[str, Any]  # the pod's spec
    claims: tuple[str, ...]  # names of volumeClaimTemplates
    max_surge: int
    max_unavailable: int

    @property
    def container(self) -> dict[str, Any]:
        """The service's container."""
        return next(c for c in self.template["containers"] if c["name"] == "service")

    def probe(self, kind: str) -> dict[str, Any]:
        """startupProbe, readinessProbe or livenessProbe."""
        probe: dict[str, Any] = self.container[kind]
        return probe

    @property
    def pre_stop_seconds(self) -> float:
        """How long it still serves after its address was taken away."""
        return float(self.container["lifecycle"]["preStop"]["sleep"]["seconds"])


@dataclass(frozen=True)
class Manifests:
    """What an overlay renders to."""

    workloads: dict[str, Workload]
    services: dict[str, dict[str, Any]]  # specs
    max_unavailable: dict[str, int]  # of each workload's disruption budget
    secrets: tuple[str, ...]  # that cert-manager makes for the services


def read(text: str) -> Manifests:
    """Of kubectl's output."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    workloads = [workload(d) for kind in ("Deployment", "StatefulSet") for d in by_kind.get(kind, [])]
    return Manifests(
        {entry.name: entry for entry in workloads},
        {d["metadata"]["name"]: d["spec"] for d in by_kind["Service"]},
        {
            d["spec"]["selector"]["matchLabels"][NAME]: d["spec"]["maxUnavailable"]
            for d in by_kind["PodDisruptionBudget"]
        },
        tuple(d["spec"]["secretName"] for d in by_kind.get("Certificate", []) if not d["spec"].get("isCA")),
    )


def workload(document: dict[str, Any]) -> Workload:
    """Of a Deployment's or StatefulSet's manifest."""
    spec = document["spec"]
    rolling = spec.get("strategy", {}).get("rollingUpdate", {"maxSurge": 0, "maxUnavailable": 1})
    return Workload(
        document["metadata"]["name"],
        document["kind"],
        spec.get("replicas", 1),
        spec["template"]["spec"],
        tuple(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])),
        rolling["maxSurge"],
        rolling["maxUnavailable"],
    )


def environment(container: dict[str, Any], pod: str) -> dict[str, str]:
    """The container's variables; of references, those to the pod's name and to its limits."""
    values: dict[str, str] = {}
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        if "value" in entry:
            values[entry["name"]] = entry["value"]
        elif source.get("fieldRef", {}).get("fieldPath") == "metadata.name":
            values[entry["name"]] = pod
        elif source.get("resourceFieldRef", {}).get("resource") == "limits.cpu":
            values[entry["name"]] = str(container["resources"]["limits"]["cpu"])
        else:
            raise ValueError(f"{entry['name']}: the trial has no {source}")
    return values


def mounts(container: dict[str, Any]) -> dict[Path, str]:
    """Mount path to the volume's name."""
    return {Path(entry["mountPath"]): entry["name"] for entry in container.get("volumeMounts", [])}
