"""The editor's CLIP: the family's clip/, or what SFUMATO_EDITOR_CLIP names, by the encoder's rules."""

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.common.checked_weights import WeightsError
from sfumato.common.errors import NotFound, SfumatoError
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.config import EditorSettings
from sfumato.editor.models import FamilyModels
from sfumato.editor.registry import method_of, offered
from sfumato.editor.servicer import EditorServicer

CPU = torch.device("cpu")


@pytest.fixture
def family(tiny_family: Path, tmp_path: Path) -> Path:
    """Without clip/, which lies elsewhere."""
    shutil.copytree(tiny_family / "clip", tmp_path / "elsewhere")
    return shutil.copytree(tiny_family, tmp_path / "mine", ignore=shutil.ignore_patterns("clip"))


def test_a_given_clip_takes_the_place_of_the_familys(family: Path, tiny_family: Path, tmp_path: Path) -> None:
    store = ArtifactStore((tmp_path / "store").as_uri())
    given = str(tmp_path / "elsewhere")
    clip = FamilyModels(family, CPU, store, given).clip
    expected = FamilyModels(tiny_family, CPU, store).clip
    for name, weight in expected.state_dict().items():
        assert torch.equal(clip.state_dict()[name], weight)
    assert "text2live" in [method.name for method in offered(family, given)]
    assert method_of("vqgan-clip", family, given)
    with pytest.raises(NotFound, match="needs clip/"):
        method_of("vqgan-clip", family)
    with pytest.raises(NotFound, match="no clip/ folder"):
        _ = FamilyModels(family, CPU, store).clip


def test_what_was_computed_with_another_clip_is_not_taken(family: Path, tmp_path: Path) -> None:
    store = ArtifactStore((tmp_path / "store").as_uri())
    for number, given in enumerate(("", "ViT-B-32/openai", "ViT-L-14/openai")):
        models = FamilyModels(family, CPU, store, given)
        for _ in range(2):
            kept = models.cached("relevance", ("clip",), lambda number=number: {"a": torch.tensor([number])})
            assert kept["a"].item() == number


@pytest.mark.parametrize("part", ["clip", "stylegan2/faces"])
def test_what_was_computed_with_other_weights_of_the_same_name_is_not_taken(
    part: str, tiny_family: Path, tmp_path: Path
) -> None:
    family = shutil.copytree(tiny_family, tmp_path / "mine")
    store = ArtifactStore((tmp_path / "store").as_uri())
    file = next((family / part).glob("*.safetensors"))
    for number in range(2):
        models = FamilyModels(family, CPU, store)
        kept = models.cached("relevance", ("clip", part), lambda number=number: {"a": torch.tensor([number])})
        assert kept["a"].item() == number
        weights = load_file(file)
        save_file({name: value.neg() for name, value in weights.items()}, file)


@pytest.mark.parametrize("given", ["NoSuchModel/laion", "ViT-B-32/no_such_tag", "FOLDER"])
async def test_a_clip_that_cannot_be_had_ends_the_editor_at_its_start(
    given: str, family: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "open_clip_model.safetensors").unlink()
    source = given.replace("FOLDER", str(tmp_path / "elsewhere"))
    settings = EditorSettings(family=family, clip=source, state_dir=tmp_path / "state")
    servicer = EditorServicer(settings)
    with pytest.raises(SfumatoError) as refused:
        await servicer.load()
    assert isinstance(refused.value, WeightsError)
    assert source in refused.value.message
    assert "\n" not in refused.value.message


async def test_a_chore_that_fails_in_the_database_is_done_again(tiny_family: Path, tmp_path: Path) -> None:
    servicer = EditorServicer(EditorSettings(family=tiny_family, state_dir=tmp_path))
    done = asyncio.Event()
    calls: list[int] = []

    def chore() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("database or disk is full")
        loop.call_soon_threadsafe(done.set)

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(servicer._regularly(0.01, chore))
    await asyncio.wait_for(done.wait(), 5)
    task.cancel()
