"""What was fetched: sfumato.json in a family names repository, commit and the digest of each file."""

import json
from pathlib import Path

from sfumato.common.checked_weights import WeightsError
from sfumato.common.weights import sha256

RECORD = "sfumato.json"


def record(folder: Path, repository: str, revision: str) -> None:
    """Writes sfumato.json: the repository's id, the commit, and each file's SHA-256 but hidden ones'."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [name for name in names if name.name != RECORD and not any(p.startswith(".") for p in name.parts)]
    digests = {str(name): sha256(folder / name) for name in kept}
    values = {"repository": repository, "revision": revision, "sha256": digests}
    (folder / RECORD).write_text(json.dumps(values, indent=2) + "\n")


def changed(folder: Path) -> list[str]:
    """Recorded files that are missing or no longer the same; reads them all. Empty without a record.

    Raises:
        WeightsError: the record cannot be read.
    """
    if not (folder / RECORD).is_file():
        return []
    try:
        recorded = dict(json.loads((folder / RECORD).read_text())["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder / RECORD} is no record of a fetched family") from error
    return [
        name
        for name, digest in recorded.items()
        if not (folder / name).is_file() or sha256(folder / name) != digest
    ]
