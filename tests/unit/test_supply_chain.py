"""Locks and licences: what is installed, by hash, and under which terms."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "supply-chain.md"
OWN = {"sfumato", "sfumato-client", "sfumato-protos"}
VARIANTS = ("cpu", "cuda")
# How packages that know no SPDX name put it.
SPDX = {
    "Apache Software License": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def pins(path: Path) -> dict[str, str]:
    """Versions of a lock by name."""
    found = re.findall(r"^([\w.-]+)==([^\s]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def declared(package: str) -> str:
    """A package's licence as its metadata have it, "" where they have none."""
    data = metadata(package)
    if expression := data.get("License-Expression"):
        return str(expression)
    classifiers = [line.split(" :: ") for line in data.get_all("Classifier") or []]
    named = [parts[-1] for parts in classifiers if parts[0] == "License" and parts[-1] != "DFSG approved"]
    lines = str(data.get("License") or "").strip().splitlines()
    return " AND ".join(SPDX.get(name, name) for name in named or lines[:1])


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Whether each licence of an AND, and one of each OR, is allowed."""
    parts = re.split(r" AND ", expression.replace("(", "").replace(")", ""))
    return all(any(choice.strip() in allowed for choice in part.split(" OR ")) for part in parts)


def page_lists() -> tuple[set[str], set[str]]:
    """The licences that the page allows, and the packages that it excepts."""
    text = PAGE.read_text().partition("## Licences")[2]
    allowed, _, excepted = text.partition("| package |")
    rows = [line.split("|")[1] for line in allowed.splitlines() if line.startswith("| `")]
    licences = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    packages = re.findall(r"^\| `([^`]+)` \|", excepted, re.MULTILINE)
    return licences, {canonicalize_name(package) for package in packages}


def test_each_dependency_has_a_licence_that_the_page_allows() -> None:
    allowed, excepted = page_lists()
    not_installed, refused = set(), {}
    for package in pins(ROOT / "requirements.lock"):
        try:
            licence = SPDX.get(declared(package), declared(package))
        except PackageNotFoundError:
            not_installed.add(package)
            continue
        if not is_allowed(licence, allowed):
            refused[package] = licence
    assert set(refused) == excepted, {name: refused.get(name) for name in set(refused) ^ excepted}
    assert not not_installed


def test_a_licence_is_allowed_only_with_all_its_parts() -> None:
    allowed = {"MIT", "Apache-2.0", "BSD-3-Clause"}
    assert is_allowed("MIT AND (GPL-3.0-only OR Apache-2.0)", allowed)
    assert not is_allowed("MIT AND GPL-3.0-only", allowed)
    assert not is_allowed("GPL-2.0-only OR LGPL-3.0-only", allowed)
    assert not is_allowed("", allowed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_lock_has_each_package_of_the_services_once_by_its_hash(variant: str) -> None:
    path = ROOT / "deploy" / f"requirements-{variant}.lock"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    locked, versions = pins(path), pins(ROOT / "requirements.lock")
    assert len(locked) == len(lines)
    differing = {name for name, version in locked.items() if versions.get(name, version) != version}
    assert not differing
    assert not {"pytest", "mypy", "moto", "av", "ruff"} & set(locked)
    # Whole: with what each needs, which is installed here.
    queue = [Requirement(text) for project in ("", "clients/python", "protos") for text in needed(project)]
    seen: set[str] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}{sorted(requirement.extras)}"
        if name in OWN or key in seen:
            continue
        seen.add(key)
        assert name in locked, f"{name} is missing: make locks"
        for text in requires(name) or []:
            child = Requirement(text)
            environments = [{**default_environment(), "extra": extra} for extra in ("", *requirement.extras)]
            if child.marker is None or any(child.marker.evaluate(values) for values in environments):
                queue.append(child)


def needed(project: str) -> list[str]:
    """The dependencies in a project's file."""
    text = (ROOT / project / "pyproject.toml").read_text()
    found: list[str] = tomllib.loads(text)["project"]["dependencies"]
    return found
