"""Families from the hub: fetched at deploy time, the revision pinned, each file's digest recorded."""

from pathlib import Path

from sfumato.common.checked_weights import WeightsError
from sfumato.common.recorded import record

WANTED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.md")  # nothing that is pickled


def fetch(repository: str, revision: str, folder: Path) -> Path:
    """Downloads a repository and writes sfumato.json, which common.recorded compares with.

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
    record(folder, repository, str(commit))
    return folder
