"""A family of weights on disk: which folder, and is what a service needs there."""

import json
from pathlib import Path
from typing import Any

from sfumato.common.errors import NotFound


def family_name(folder: Path) -> str:
    """Resource name of a family folder, "families/{id}"."""
    return f"families/{folder.resolve().name}"


def part_of(folder: Path, part: str) -> Path:
    """The family's subfolder of that name.

    Raises:
        NotFound: there is none; the message says where it was looked for.
    """
    path = folder / part
    if not path.is_dir():
        raise NotFound(
            f"family {folder} has no {part}/ folder (diffusers layout); looked for {path.resolve()}"
        )
    return path


def read_json(folder: Path, part: str, file: str) -> dict[str, Any]:
    """A configuration file of the family."""
    path = part_of(folder, part) / file
    if not path.is_file():
        raise NotFound(f"family {folder} has no {part}/{file}; looked for {path.resolve()}")
    config: dict[str, Any] = json.loads(path.read_text())
    return config
