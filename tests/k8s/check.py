"""`make k8s-check`: renders overlays and components, validates strictly, scans policies, lints images."""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from tests.k8s.tools import K8S, render, tools

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent for path in (K8S / "components").glob("*/kustomization.yaml"))
VERSIONS = ("1.35", "1.36", "1.37")
# Kinds of other projects; kubernetes-validate has only Kubernetes' own. Their fields are checked in
# tests/unit/k8s/test_manifests.py against what those projects document.
CUSTOM = ("ServiceMonitor", "GRPCRoute", "ScaledObject", "Certificate", "Issuer")


def rendered(folder: Path) -> list[Path]:
    """A file for each overlay, and for base with each component that no overlay uses."""
    files = []
    used = "".join((overlay / "kustomization.yaml").read_text() for overlay in OVERLAYS)
    alone = [component for component in COMPONENTS if f"components/{component.name}\n" not in used]
    for overlay in OVERLAYS:
        files.append(folder / f"{overlay.name}.yaml")
        files[-1].write_text(render(overlay))
    for component in alone:
        files.append(folder / f"base-with-{component.name}.yaml")
        files[-1].write_text(render(K8S / "base", [component.name], "cpu"))
    return files


def invalid(file: Path, version: str) -> list[str]:
    """What kubernetes-validate says of a file, less that it does not know other projects' kinds."""
    command = [tools() / "kubernetes-validate", "--strict", "-k", version, file]
    ran = subprocess.run(command, capture_output=True, text=True)
    lines = (ran.stdout + ran.stderr).splitlines()
    unknown = re.compile(rf"^WARN .*schema for kind ({'|'.join(CUSTOM)}) ")
    bad = [line for line in lines if line and not line.startswith("INFO") and not unknown.match(line)]
    return bad or ([f"exit code {ran.returncode}"] if ran.returncode else [])


def scan(files: list[Path]) -> subprocess.CompletedProcess[str]:
    """Checkov over all files. Exceptions are annotations in the manifests, each with its reason."""
    command = [tools() / "python", tools() / "checkov", "--framework", "kubernetes"]
    command += ["--compact", "--quiet", "--skip-download", "-f", *files]
    return subprocess.run(command, capture_output=True, text=True)


def lint_images() -> list[str]:
    """What hadolint says of the Dockerfile, and what is wrong with the compose files."""
    said = []
    ran = subprocess.run(
        [tools() / "hadolint", ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True
    )
    if ran.returncode:
        said.append(ran.stdout + ran.stderr)
    parse = "import compose_spec, sys; compose_spec.PyCompose.from_yaml(sys.stdin.read())"
    for file in sorted((ROOT / "deploy").glob("compose*.yaml")):
        # As compose itself does first: variables to their defaults, merge keys resolved.
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", file.read_text())
        plain = yaml.safe_dump(yaml.safe_load(text))
        command = [tools() / "python", "-c", parse]
        ran = subprocess.run(command, input=plain, capture_output=True, text=True)
        if ran.returncode:
            said.append(f"{file.name}: {ran.stderr.splitlines()[-1]}")
    return said


def main() -> None:
    """Exit code 1 where something is wrong."""
    images = lint_images()
    print("Dockerfile and compose files:", *(images or ["clean"]), sep="\n  ")
    failed = bool(images)
    with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(2) as pool:
        files = rendered(Path(made))
        scanned = pool.submit(scan, files)
        pairs = [(file, version) for file in files for version in VERSIONS]
        for (file, version), bad in zip(pairs, pool.map(lambda pair: invalid(*pair), pairs), strict=True):
            print(f"{file.stem}, Kubernetes {version}: {'valid' if not bad else 'INVALID'}", *bad, sep="\n  ")
            failed |= bool(bad)
        policies = scanned.result()
    summary = re.search(r"Passed checks: \d+, Failed checks: \d+, Skipped checks: \d+", policies.stdout)
    print(f"checkov: {summary.group() if summary else 'nothing failed'}")
    if policies.returncode:
        print(policies.stdout, policies.stderr, sep="\n")
    sys.exit(1 if failed or policies.returncode else 0)


if __name__ == "__main__":
    main()
