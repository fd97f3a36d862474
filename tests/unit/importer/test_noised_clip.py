"""GLIDE's noised CLIP under its published names: each key finds its place, the model is the published one."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sfumato.common.checked_weights import WeightsError
from sfumato.common.family_check import check_family
from sfumato.common.glide_clip import GlideClip
from sfumato.common.noised_clip import load_noised_clip
from sfumato.encoder.noised import NoisedClip, glide_timesteps
from sfumato.importer.noised_clip import glide_clip
from sfumato.importer.parts import import_noised_clip
from tests.glide import Keys, published, save_published


def test_the_published_sizes_have_a_place_for_every_key() -> None:
    """config.yaml of the published code: 64 pixels, patches of 4, 12 layers of 12 and 8 heads."""
    image = published("image", 768, 12, "meta", patch=4)
    text = published("text", 512, 12, "meta", vocabulary=65536)
    config, renamed = glide_clip(image, text)
    with torch.device("meta"):
        expected = GlideClip().state_dict()
        assert GlideClip(**{name: config[name] for name in config if name != "_class_name"})
    assert len(renamed) == len(image) + len(text)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def test_the_imported_towers_compute_what_the_published_ones_do(tmp_path: Path) -> None:
    glide = save_published(tmp_path)
    folder = import_noised_clip(tmp_path / "image.pt", tmp_path / "text.pt", tmp_path / "family")
    model = load_noised_clip(folder).double()
    assert isinstance(model, GlideClip)
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tokens = torch.zeros(2, 77, dtype=torch.long)
    tokens[0, :4] = torch.tensor([49406, 320, 2368, 49407])
    tokens[1] = torch.tensor([49406, *[2368] * 75, 49407])
    with torch.no_grad():
        # A timestep between two is the nearer one's, one outside the schedule the schedule's end.
        got = model(x, torch.tensor([416.7, -3.0, 1200.0]))
        torch.testing.assert_close(got, glide.image_embeddings(x, torch.tensor([417, 0, 999])))
        expected = glide.text_embeddings(tokens, torch.tensor([4, 77]))
        torch.testing.assert_close(model.embed_tokens(tokens), expected)


@pytest.mark.parametrize("left_out", ["blocks.block_1.f_mlp.f_2.b", "blocks.input.w_t"])
def test_what_is_not_glides_clip_is_refused_and_leaves_nothing(left_out: str, tmp_path: Path) -> None:
    save_published(tmp_path)
    keys: Keys = torch.load(tmp_path / "image.pt", weights_only=True)
    del keys[left_out]
    torch.save(keys, tmp_path / "image.pt")
    with pytest.raises(
        WeightsError, match=r"image\.blocks\.1\.linear_2\.bias is missing|input\.w_t is missing"
    ):
        import_noised_clip(tmp_path / "image.pt", tmp_path / "text.pt", tmp_path / "family")
    assert not (tmp_path / "family" / "clip_noised").exists()


def test_a_family_of_other_latents_is_refused_at_the_start(tiny_family: Path, tmp_path: Path) -> None:
    """The encoder does not start, and `sfumato models check` says so before."""
    save_published(tmp_path)
    family = tmp_path / "family"
    import_noised_clip(tmp_path / "image.pt", tmp_path / "text.pt", family)
    for part in ("unet", "scheduler"):
        (family / part).symlink_to(tiny_family / part)
    said = r"clip_noised: takes 3x64x64, the UNet's latents have 4 channels"
    with pytest.raises(WeightsError, match=said):
        NoisedClip(family, torch.device("cpu"), None)
    assert any("takes 3x64x64" in error for error in check_family(family).errors)


def test_another_schedules_timestep_is_the_one_of_glides_with_as_much_noise(tiny_family: Path) -> None:
    t = torch.arange(1000, dtype=torch.float64)

    def cosine(u: torch.Tensor) -> torch.Tensor:
        return ((u / 1000 + 0.008) / 1.008 * torch.pi / 2).cos().square()

    betas = (1 - cosine(t + 1) / cosine(t)).clamp(max=0.999)
    glide = (1 - betas).cumprod(0)
    own = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)
    found = glide_timesteps(tiny_family)
    assert float((glide[found] - own).abs().max()) < 2e-3  # a step of the cosine schedule is at most 1.6e-3
    assert F.relu(-found.diff()).sum() == 0
