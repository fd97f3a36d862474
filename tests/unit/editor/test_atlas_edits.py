"""Edits on an atlas: paint and Text2LIVE come to lie where the mapping says, and nothing else changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument, Unimplemented
from sfumato.common.seeding import generator_of, initialise
from sfumato.editor import atlas_render, layered_atlas, registry, text2live_video
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.atlas_layers import LayerMaps
from sfumato.editor.atlas_networks import AtlasNetworks, Sizes
from sfumato.editor.config import EditorSettings
from sfumato.editor.decomposition import Decomposition, atlas_picture
from sfumato.editor.edits import Request, prepare
from sfumato.editor.method import Inputs
from sfumato.editor.text2live_losses import composite
from sfumato.editor.video import Video, decode
from tests.clips import moving_disc, video_file
from tests.editor_process import noisy_image
from tests.tiny_models import TinyModels
from tests.unit.editor.resuming import assert_resumes_bit_for_bit, finish

SMALL = {"channels": 8, "num_scales": 2, "num_views": 2, "num_frames": 2}
FRAMES, MASKS = moving_disc(4)
NAME = "operations/a"


@pytest.fixture(scope="module")
def earlier() -> dict[str, torch.Tensor]:
    """A decomposition of the disc, whose mask is given."""
    white = np.repeat(MASKS[..., None] * np.uint8(255), 3, -1)
    video = Inputs(video=Video(FRAMES, 25.0), mask_video=Video(white, 25.0))
    options = layered_atlas.Options(
        width=32, foreground_layers=3, background_layers=3, alpha_layers=3, atlas_layers=6, atlas_bands=6,
        batch_size=512, num_iterations=200, learning_rate=5e-3, lambda_bootstrap=2e4, num_far_iterations=0,
    )  # fmt: skip
    state = finish(layered_atlas.METHOD, layered_atlas.start(options, video, TinyModels()))
    return state.decomposition().tensors()


def painted(earlier: dict[str, torch.Tensor], layer: str, box: tuple[int, int, int, int]) -> Image.Image:
    atlas = atlas_picture(Decomposition.of_tensors(earlier, torch.device("cpu")), layer)
    atlas.paste((0, 0, 255), box)
    return atlas


def render(earlier: dict[str, torch.Tensor], image: Image.Image, layer: str, models: TinyModels) -> Any:
    options = atlas_render.Options(decomposition=NAME, layer=layer)
    return finish(atlas_render.METHOD, atlas_render.start(options, Inputs(image, earlier=earlier), models))


def test_an_atlas_that_was_not_painted_changes_nothing(earlier: Any, models: TinyModels) -> None:
    same = painted(earlier, "foreground", (0, 0, 0, 0))
    result = render(earlier, same, "foreground", models).result()
    assert np.array_equal(result["video"].frames, FRAMES)
    # Nor does what an encoder leaves of it.
    noisy = Image.fromarray((np.asarray(same).astype(int) + 3).clip(0, 255).astype(np.uint8))
    assert np.array_equal(render(earlier, noisy, "foreground", models).result()["video"].frames, FRAMES)


@pytest.mark.parametrize("layer", ["foreground", "background"])
def test_paint_covers_its_layer_in_every_frame(layer: str, earlier: Any, models: TinyModels) -> None:
    state = render(earlier, painted(earlier, layer, (0, 0, 96, 96)), layer, models)
    result = state.result()
    frames = result["video"].frames.astype(float)
    share = state.maps.share.numpy()
    blue = np.array([0, 0, 255.0])
    expected = share[..., None] * blue + (1 - share[..., None]) * FRAMES
    assert np.abs(frames - expected).max() < 2
    mine = MASKS if layer == "foreground" else ~MASKS
    assert np.abs(frames - blue).mean(-1)[mine].mean() < 0.4 * np.abs(frames - blue).mean(-1)[~mine].mean()
    assert result["edit_layer"].mode == "RGBA"


def test_a_spot_on_the_atlas_is_where_the_mapping_says(earlier: Any, models: TinyModels) -> None:
    found = Decomposition.of_tensors(earlier, models.device)
    maps = LayerMaps.of(found, "background")
    u, v = maps.uv[2, 6, 40].tolist()
    side = found.atlas_side
    middle = [round((place + 1) / 2 * side) for place in (u, v)]
    spot = (middle[0] - 4, middle[1] - 4, middle[0] + 4, middle[1] + 4)
    frames = render(earlier, painted(earlier, "background", spot), "background", models).done.numpy()
    changed = np.abs(frames[2].astype(int) - FRAMES[2]).sum(-1)
    rows, columns = np.nonzero(changed > 60)
    assert abs(rows.mean() - 6) < 1.5
    assert abs(columns.mean() - 40) < 1.5
    assert len(rows) < 160


def test_laying_a_box_of_a_layer_is_laying_the_layer(earlier: Any, models: TinyModels) -> None:
    found = Decomposition.of_tensors(earlier, models.device)
    maps, side = LayerMaps.of(found, "foreground"), found.atlas_side
    box = left, top, right, bottom = maps.box(side)
    whole = torch.zeros(1, 4, side, side)
    whole[..., top:bottom, left:right] = torch.rand(1, 4, bottom - top, right - left)
    one = maps.lay(whole, 1, (0, 0, side, side), side)
    same = maps.lay(whole[..., top:bottom, left:right], 1, box, side)
    seen = maps.share[1] > 0.5
    assert torch.allclose(one[0][:, seen], same[0][:, seen], atol=1e-4)


@pytest.mark.parametrize("place", [-1.0, 0.0, 0.98, 1.0])
def test_a_layer_that_is_one_spot_of_the_atlas_has_a_box_within_it(place: float) -> None:
    uv = torch.full((1, 16, 16, 2), place)
    box = LayerMaps(uv, torch.ones(1, 16, 16), torch.zeros(1, 3, 16, 16), 25.0).box(32)
    assert 0 <= box[0] <= (place + 1) * 16 <= box[2] <= 32
    assert (box[2] - box[0], box[3] - box[1]) == (8, 8)
    assert box[:2] == (box[1], box[0])


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5, 0.9])
def test_what_is_finer_than_a_pixel_is_laid_as_its_mean(shift: float) -> None:
    middles = (torch.arange(8) + 0.5) / 4 - 1  # of 8 pixels, each over 2 of the layer's
    v, u = torch.meshgrid(middles, middles, indexing="ij")
    uv = torch.stack([u + shift / 8, v], -1)[None]
    maps = LayerMaps(uv, torch.ones(1, 8, 8), torch.zeros(1, 3, 8, 8), 25.0)
    stripes = (torch.arange(16) % 2).float().expand(1, 4, 16, 16)
    laid = maps.lay(stripes, 0, (0, 0, 16, 16), 16)
    assert (laid[..., 1:-1] - 0.5).abs().max() < 0.01


def test_laying_has_the_gradient_of_finite_differences() -> None:
    networks = AtlasNetworks(Sizes(8, 3, 2, 3, 6, 2, 3))
    initialise(networks, generator_of(0))
    found = Decomposition(networks, torch.from_numpy(FRAMES[:1, ::8, ::8].copy()), 25.0)
    maps = LayerMaps.of(found, "foreground")
    double = LayerMaps(maps.uv.double(), maps.share.double(), maps.frames.double(), 25.0)
    layer = torch.rand(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)

    def edited(layer: torch.Tensor) -> torch.Tensor:
        return composite(double.lay(layer, 0, (0, 0, 6, 6), 6), double.frames)

    assert torch.autograd.gradcheck(edited, layer)


def test_text2live_edits_the_layer_alone(earlier: Any, models: TinyModels) -> None:
    options = text2live_video.Options(
        decomposition=NAME, prompt="a fire", source_prompt="a disc", region_prompt="a disc", num_iterations=2,
        **SMALL,
    )  # fmt: skip
    state = text2live_video.start(options, Inputs(earlier=earlier), models)
    seen = [set(progress.losses) for progress in text2live_video.run(state)]
    terms = {"composition", "direction", "screen", "structure", "sparsity", "bootstrap", "total"}
    assert seen == [terms, terms]
    result = state.result()
    assert list(result) == ["video", "edit_layer", "atlas"]
    change = np.abs(result["video"].frames.astype(int) - FRAMES).mean(-1)
    share = state.maps.share.numpy()
    assert change[share < 0.02].max() <= 6
    assert change[share > 0.9].mean() > 10
    assert result["edit_layer"].size == result["atlas"].size == (96, 96)


def test_text2live_refuses_a_layer_of_one_colour(earlier: Any, models: TinyModels) -> None:
    last = max(name for name in earlier if name.startswith("networks.atlas.layers") and "bias" in name)
    black = {last: torch.full_like(earlier[last], -9), last.replace("bias", "weight"): torch.zeros(3, 32)}
    options = text2live_video.Options(decomposition=NAME, prompt="a fire", **SMALL)
    with pytest.raises(InvalidArgument, match="layer must be of more than one colour"):
        text2live_video.start(options, Inputs(earlier={**earlier, **black}), models)


def test_both_resume_bit_for_bit(earlier: Any, models: TinyModels) -> None:
    options = text2live_video.Options(decomposition=NAME, prompt="a fire", num_iterations=3, seed=2, **SMALL)
    inputs = Inputs(earlier=earlier)
    assert_resumes_bit_for_bit(text2live_video.METHOD, options, inputs, models)
    painting = Inputs(painted(earlier, "foreground", (0, 0, 96, 96)), earlier=earlier)
    assert_resumes_bit_for_bit(
        atlas_render.METHOD, atlas_render.Options(decomposition=NAME), painting, models
    )


def test_what_is_no_atlas_is_refused(earlier: Any, models: TinyModels) -> None:
    with pytest.raises(InvalidArgument, match="square"):
        atlas_render.start(
            atlas_render.Options(decomposition=NAME),
            Inputs(Image.new("RGB", (64, 32)), earlier=earlier),
            models,
        )


def test_without_its_packages_a_method_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda package: None)
    assert "layered-atlas" not in [method.name for method in registry.offered(tmp_path)]
    with pytest.raises(Unimplemented, match=r"sfumato\[video\]"):
        registry.method_of("layered-atlas", tmp_path)


def asked(tmp_path: Path, **images: bytes) -> Any:
    settings = EditorSettings(state_dir=tmp_path, max_video_frames=10)
    request = Request("a", "", {}, images, 0)
    return prepare(request, layered_atlas.METHOD, ArtifactStore(settings.artifacts), settings)


def test_a_video_and_its_mask_are_kept_and_checked(tmp_path: Path) -> None:
    white = np.repeat(MASKS[..., None] * np.uint8(255), 3, -1)
    edit = asked(tmp_path, video=video_file(FRAMES), mask=video_file(white))
    assert set(edit.images) == {"video", "mask"}
    settings = EditorSettings(state_dir=tmp_path)
    kept = ArtifactStore(settings.artifacts).read(edit.images["video"])
    assert decode(kept, "video", settings.video_limits).frames.shape == FRAMES.shape
    with pytest.raises(InvalidArgument, match="mask must be 4 frames of 48x32, as the video, but is 3 of"):
        asked(tmp_path, video=video_file(FRAMES), mask=video_file(white[:3]))
    with pytest.raises(InvalidArgument, match="given together"):
        asked(tmp_path, mask=noisy_image())
    with pytest.raises(InvalidArgument, match="video must be given"):
        asked(tmp_path)
