"""Families from the hub: fetched at deploy time, the revision pinned, each file's digest recorded."""

import hashlib
import json
from pathlib import Path

from sfumato.common.checked_weights import WeightsError

WANTED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.md")  # nothing that is pickled
RECORD = "sfumato.json"


def fetch(repository: str, revision: str, folder: Path) -> Path:
    """Downloads a repository and writes sfumato.json: its id, the commit, and each file's SHA-256.

    Args:
        repository: "OWNER/NAME".
        revision: commit, tag or branch; the commit that it stands for is recorded.
        folder: where to.

    Raises:
        WeightsError: the hub does not know it, or cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = HfApi().repo_info(repository, revision=revision).sha
        snapshot_download(repository, revision=commit, local_dir=folder, allow_patterns=list(WANTED))
    except Exception as error:  # of the hub, the network and the disk: they have no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{repository} at {revision} cannot be fetched: {reason}"[:300]) from error
    record = {"repository": repository, "revision": commit, "sha256": digests(folder)}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the folder; sfumato.json and hidden folders are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.name != RECORD and not any(part.startswith(".") for part in name.parts):
            with path.open("rb") as file:
                found[str(name)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def changed(folder: Path) -> list[str]:
    """Files that are no longer what was recorded, missing or new; empty where nothing was recorded."""
    record = folder / RECORD
    if not record.is_file():
        return []
    recorded, now = json.loads(record.read_text())["sha256"], digests(folder)
    return sorted(name for name in {*recorded, *now} if recorded.get(name) != now.get(name))
