"""The noise-aware CLIP's tower and its files."""

from pathlib import Path

import pytest
import torch

from sfumato.common.errors import NotFound
from sfumato.common.noised_clip import NoisedImageEncoder, load_noised_clip, save_noised_clip

SMALL = {"in_channels": 4, "sample_size": 8, "width": 32, "layers": 2, "heads": 4, "embed_dim": 24}


def make() -> NoisedImageEncoder:
    """Seeded, small."""
    torch.manual_seed(0)
    return NoisedImageEncoder(**SMALL).eval()


@pytest.mark.parametrize("size", [(8, 8), (12, 10)])
def test_latents_of_any_size_become_unit_vectors(size: tuple[int, int]) -> None:
    features = make()(torch.randn(3, 4, *size), torch.tensor([0.0, 500.0, 999.0]))
    assert features.shape == (3, 24)
    assert torch.allclose(features.norm(dim=-1), torch.ones(3), atol=1e-6)


def test_the_timestep_changes_what_is_seen() -> None:
    latents = torch.randn(1, 4, 8, 8)
    early, late = make()(latents.expand(2, -1, -1, -1), torch.tensor([10.0, 900.0]))
    assert (early - late).abs().max() > 1e-3


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = make()
    save_noised_clip(tmp_path / "clip_noised", model)
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.5])
    loaded = load_noised_clip(tmp_path / "clip_noised")
    assert torch.allclose(loaded(latents, timesteps), model(latents, timesteps), atol=1e-6)


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    save_noised_clip(tmp_path, make().half())
    assert all(weight.dtype == torch.float32 for weight in load_noised_clip(tmp_path).parameters())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        load_noised_clip(tmp_path)
