"""Writes the locks that images are installed from: each file of what the services need, by its SHA-256.

    python deploy/hash_lock.py cpu     # torch as pip's settings find it: with PyTorch's index the CPU build
    python deploy/hash_lock.py cuda    # as the CPU lock, but torch as PyPI has it, with NVIDIA's packages

Versions are those of requirements.lock; without tests, linters, trainer and film writer (PyAV, whose wheels
bundle GPL codecs).
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OWN = ("sfumato", "sfumato-client", "sfumato-protos")
CUDA = ("torch", "torchvision")


def wanted() -> list[str]:
    """What the services and the client depend on, less our own packages."""
    found: set[str] = set()
    for project in (ROOT, ROOT / "clients" / "python", ROOT / "protos"):
        found |= set(tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"])
    return sorted(name for name in found if name not in OWN)


def report(requirements: list[str], isolated: bool) -> list[dict[str, Any]]:
    """What pip would install; isolated: from PyPI, whatever pip's settings say."""
    environment = {**os.environ, **({"PIP_CONFIG_FILE": os.devnull} if isolated else {})}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        pip = [sys.executable, "-m", "pip", *(["--isolated"] if isolated else [])]
        options = ["--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--report", file.name]
        pinned = ["--constraint", str(ROOT / "requirements.lock")]
        subprocess.run([*pip, "install", *options, *pinned, *requirements], check=True, env=environment)
        installs: list[dict[str, Any]] = json.load(file)["install"]
    return installs


def lines(installs: list[dict[str, Any]]) -> dict[str, str]:
    """Pins with hashes, by name. A local version, as torch's +cpu, stands in the hash alone."""
    found = {}
    for install in installs:
        name, version = install["metadata"]["name"], install["metadata"]["version"].partition("+")[0]
        digest = install["download_info"]["archive_info"]["hashes"]["sha256"]
        found[re.sub("[-_.]+", "-", name).lower()] = f"{name}=={version} --hash=sha256:{digest}"
    return found


def main() -> None:
    """Writes deploy/requirements-VARIANT.lock."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("variant", choices=("cpu", "cuda"))
    variant = parser.parse_args().variant
    if variant == "cpu":
        pins = lines(report(wanted(), isolated=False))
    else:
        shared = (ROOT / "deploy" / "requirements-cpu.lock").read_text().splitlines()[1:]
        cpu = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower(): line for line in shared}
        other = lines(report(list(CUDA), isolated=True))
        pins = {**other, **cpu, **{name: other[name] for name in CUDA}}
    python = ".".join(platform.python_version_tuple()[:2])
    head = f"# By deploy/hash_lock.py {variant}, for Linux x86_64 and Python {python}; not edited."
    path = ROOT / "deploy" / f"requirements-{variant}.lock"
    path.write_text("\n".join([head, *(pins[name] for name in sorted(pins))]) + "\n")
    print(f"{path}: {len(pins)} packages")


if __name__ == "__main__":
    main()
