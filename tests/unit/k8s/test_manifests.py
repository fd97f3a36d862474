"""The manifests, the Dockerfile and the compose file agree with the services and with each other."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.longrunning import operations_pb2
from sfumato_protos.v1 import editor_pb2, gateway_pb2

from sfumato.common.config import ServerSettings
from sfumato.decoder.config import DecoderSettings
from sfumato.denoiser.config import DenoiserSettings
from sfumato.editor.config import EditorSettings
from sfumato.encoder.config import EncoderSettings
from sfumato.gateway.config import GatewaySettings
from tests.k8s.manifests import NAME, Workload, environment, workload

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
SETTINGS: dict[str, type[ServerSettings]] = {
    "gateway": GatewaySettings, "encoder": EncoderSettings, "decoder": DecoderSettings,
    "denoiser": DenoiserSettings, "editor": EditorSettings,
}  # fmt: skip
MODELS = [name for name in SETTINGS if name != "gateway"]
PORTS = {"gateway": 50051, "encoder": 50052, "decoder": 50053, "denoiser": 50054, "editor": 50055}


def documents(path: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((K8S / path).read_text()) if document]


def manifest(name: str, kind: str) -> dict[str, Any]:
    return next(d for d in documents(f"base/{name}.yaml") if d["kind"] == kind)


def service_of(name: str) -> Workload:
    """The workload with what base/pod.yaml adds, as kustomize merges it."""
    (pod,) = documents("base/pod.yaml")
    common = pod["spec"]["template"]["spec"]
    document = manifest(name, "StatefulSet" if name == "editor" else "Deployment")
    spec = document["spec"]["template"]["spec"]
    (own,), (shared,) = spec["containers"], common["containers"]
    lists = {key: shared.get(key, []) + own.get(key, []) for key in ("ports", "env", "volumeMounts")}
    container = {**shared, **own, **lists}
    document["spec"]["template"]["spec"] = {**common, **spec, "containers": [container]}
    return workload(document)


def settings_of(name: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    return SETTINGS[name]()


def dockerfile_stages() -> dict[str, str]:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    return dict(re.findall(r"^FROM \S+ AS ([\w-]+)\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL))


def unknown_variables(names: set[str]) -> set[str]:
    known = {
        f"SFUMATO_{service.upper()}_{field.upper()}"
        for service, settings in SETTINGS.items()
        for field in settings.model_fields
    }
    return {name for name in names if name.startswith("SFUMATO_")} - known


def test_every_variable_named_anywhere_is_a_setting() -> None:
    files = [*K8S.rglob("*.yaml"), *K8S.rglob("*.env"), ROOT / "deploy" / "Dockerfile"]
    named = {name for path in files for name in re.findall(r"\bSFUMATO_[A-Z_]+", path.read_text())}
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    named |= {name for entry in compose["services"].values() for name in entry.get("environment", {})}
    assert len(named) > 40
    assert not unknown_variables(named)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pods_environment_is_accepted_and_says_the_manifests_ports(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = service_of(name)
    settings = settings_of(name, environment(pod.container, f"{name}-0"), monkeypatch)
    ports = {entry["name"]: entry["containerPort"] for entry in pod.container["ports"]}
    said = {"grpc": settings.port, "metrics": settings.metrics_port, "health": settings.health_port}
    assert said == ports
    assert settings.port == PORTS[name]
    assert settings.host == "0.0.0.0"
    service = manifest(name, "Service")["spec"]
    numbers = {entry["name"]: entry["port"] for entry in service["ports"]}
    assert numbers == {"grpc": settings.port, "metrics": settings.metrics_port}


@pytest.mark.parametrize("name", SETTINGS)
def test_probes_ask_the_health_port_and_liveness_does_not_wait_for_weights(name: str) -> None:
    pod = service_of(name)
    health = next(e["containerPort"] for e in pod.container["ports"] if e["name"] == "health")
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod.probe(kind)["grpc"]["port"] == health
    assert pod.probe("livenessProbe")["grpc"]["service"] == "liveness"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pod_has_time_for_its_drain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = service_of(name)
    settings = settings_of(name, environment(pod.container, f"{name}-0"), monkeypatch)
    grace = pod.template["terminationGracePeriodSeconds"]
    assert pod.pre_stop_seconds + settings.drain_seconds < grace
    if name in ("encoder", "decoder", "denoiser"):
        # The gateway has looked the names up again, in spite of a DNS cache of 5 seconds, before it stops.
        assert pod.pre_stop_seconds > 5 + GatewaySettings().resolve_seconds
    probe = pod.probe("livenessProbe")
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60


def test_the_gateways_targets_are_the_headless_services(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("gateway", environment(service_of("gateway").container, "gateway-0"), monkeypatch)
    targets = {
        "encoder": settings.encoder_target, "decoder": settings.decoder_target,
        "denoiser": settings.denoiser_targets, "editor": settings.editor_target,
    }  # fmt: skip
    assert targets == {name: f"dns:///{name}:{PORTS[name]}" for name in MODELS}
    for name in MODELS:
        assert manifest(name, "Service")["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in manifest("gateway", "Service")["spec"]


def test_only_the_gateway_may_reach_a_model_service() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in documents("base/network-policies.yaml")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    gateway = {"podSelector": {"matchLabels": {NAME: "gateway"}}}
    for name in MODELS:
        policy = policies[f"{name}-from-gateway"]
        assert policy["podSelector"]["matchLabels"] == {NAME: name}
        (rule,) = policy["ingress"]
        assert rule == {"from": [gateway], "ports": [{"port": PORTS[name], "protocol": "TCP"}]}
    opened = [entry["port"] for spec in policies.values() for rule in spec.get("ingress", [])
              for entry in rule["ports"]]  # fmt: skip
    assert sorted(opened) == sorted([*PORTS.values(), 9464])


@pytest.mark.parametrize("name", SETTINGS)
def test_pods_are_restricted(name: str) -> None:
    pod = service_of(name)
    context, own = pod.template["securityContext"], pod.container["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod.template["automountServiceAccountToken"] is False
    assert {"requests", "limits"} <= set(pod.container["resources"])


@pytest.mark.parametrize("name", SETTINGS)
def test_an_image_listens_where_its_manifest_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = dockerfile_stages()[name]
    variables = dict(re.findall(r"(SFUMATO_\w+)=(\S+)", stage))
    settings = settings_of(name, variables, monkeypatch)
    assert (settings.port, settings.metrics_port, settings.health_port) == (PORTS[name], 9464, 50061)
    assert f"EXPOSE {PORTS[name]} 9464" in stage
    assert f'CMD ["python", "-m", "sfumato.{name}"]' in stage
    assert service_of(name).container["image"] == f"sfumato/{name}"


def test_the_compose_file_starts_every_service_read_only_and_opens_the_gateway_alone() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert set(compose["services"]) == set(SETTINGS)
    for name, entry in compose["services"].items():
        assert entry["build"]["target"] == name
        assert (entry["read_only"], entry["cap_drop"], entry["user"]) == (True, ["ALL"], "10001:10001")
        assert ("ports" in entry) == (name == "gateway")


def test_autoscalers_and_the_scrape_name_what_exists() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    metrics = set(re.findall(r"^\| `(sfumato_\w+)` ", page, re.MULTILINE))
    for autoscaler in documents("components/hpa/autoscalers.yaml"):
        (metric,) = autoscaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] in metrics
        assert autoscaler["spec"]["scaleTargetRef"]["name"] in SETTINGS
    for scaled in documents("components/keda/scaled-objects.yaml"):
        for trigger in scaled["spec"]["triggers"]:
            assert set(re.findall(r"sfumato_\w+", trigger["metadata"]["query"])) & metrics
        assert scaled["spec"]["scaleTargetRef"]["name"] in SETTINGS
    (monitor,) = documents("components/monitoring/service-monitors.yaml")
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == ["metrics"]


def test_the_route_names_every_service_that_clients_call() -> None:
    (route,) = documents("components/route/route.yaml")
    (rule,) = route["spec"]["rules"]
    routed = {match["method"]["service"] for match in rule["matches"]}
    served = {
        gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name,
        editor_pb2.DESCRIPTOR.services_by_name["EditorService"].full_name,
        operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name,
    }
    assert routed == served
    (backend,) = rule["backendRefs"]
    assert (backend["name"], backend["port"]) == ("gateway", PORTS["gateway"])


@pytest.mark.parametrize("name", SETTINGS)
def test_with_tls_each_service_has_a_certificate_for_the_name_it_is_called_by(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = {
        d["metadata"]["name"]: d["spec"]
        for d in documents("components/tls/certificates.yaml")
        if d["kind"] == "Certificate"
    }
    assert name in certificates[name]["dnsNames"]
    assert set(certificates[name]["usages"]) == {"server auth", "client auth"}
    patch = next(d for d in documents("components/tls/pods.yaml") if d["metadata"]["name"] == name)
    pod = patch["spec"]["template"]["spec"]
    (volume,), (container,) = pod["volumes"], pod["containers"]
    assert volume["secret"]["secretName"] == certificates[name]["secretName"]
    settings = settings_of(name, environment(container, name), monkeypatch)
    (mount,) = container["volumeMounts"]
    files = {settings.tls_cert, settings.tls_key}
    if name == "gateway":
        files |= {settings.services_tls_ca, settings.services_tls_cert, settings.services_tls_key}
    else:
        assert settings.tls_client_ca is not None
        files.add(settings.tls_client_ca)
    assert {str(file.parent) for file in files} == {mount["mountPath"]}
    assert {file.name for file in files} == {"tls.crt", "tls.key", "ca.crt"}


def test_a_copy_of_the_weights_that_was_cut_short_is_made_good(tmp_path: Path) -> None:
    """A pod that starts again runs its init container again, over what the first run left."""
    (component,) = documents("components/weights-copy/models.yaml")
    (copy,) = component["spec"]["template"]["spec"]["initContainers"]
    family, copied = tmp_path / "family", tmp_path / "models" / "emoji"
    for folder, text in ((family, "whole"), (copied, "wh")):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(text)
    subprocess.run([*copy["command"][:-2], str(family), str(copied)], check=True)
    assert [(path.name, path.read_text()) for path in copied.iterdir()] == [("weights", "whole")]


def test_the_volume_of_weights_is_one_that_can_be_filled_and_read_on_many_nodes() -> None:
    (claim,) = documents("components/weights-volume/claim.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (mounted,) = documents("components/weights-volume/models.yaml")
    volumes = {volume["name"]: volume for volume in mounted["spec"]["template"]["spec"]["volumes"]}
    assert volumes["models"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
