"""What was fetched is recorded, so that a change of a file shows. The hub itself cannot be had here."""

from pathlib import Path

import pytest

from sfumato.common.checked_weights import WeightsError
from sfumato.common.family_check import check_family
from sfumato.importer import hub


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="owner/name at main cannot be fetched") as refused:
        hub.fetch("owner/name", "main", tmp_path / "family")
    assert "\n" not in refused.value.message


def test_a_fetched_familys_files_are_recorded_and_a_change_is_seen(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download alone is a stand-in: it copies a local folder."""
    import shutil
    from types import SimpleNamespace

    import huggingface_hub

    def download(repository: str, *, revision: str, local_dir: Path, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("owner/name", "0123abc")
        assert not any("bin" in pattern or "ckpt" in pattern for pattern in allow_patterns)
        return str(shutil.copytree(tiny_family, local_dir))

    def repo_info(self: object, repository: str, revision: str) -> SimpleNamespace:
        return SimpleNamespace(sha="0123abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    family = hub.fetch("owner/name", "v1", tmp_path / "family")
    assert check_family(family).changed == []
    config = family / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    (family / "scheduler" / "scheduler_config.json").unlink()
    (family / "adapters").mkdir()  # what is added to it is nobody's mistake
    (family / "adapters" / "mine.safetensors").write_bytes(b"")
    assert check_family(family).changed == ["scheduler/scheduler_config.json", "unet/config.json"]
    (family / "sfumato.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"sfumato\.json is no record"):
        check_family(family)
