"""Layered neural atlases: losses against closed forms, gradients, flow and masks against truth, resuming."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from sfumato.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from sfumato.common.seeding import generator_of, initialise
from sfumato.editor import atlas_losses as terms
from sfumato.editor import flow, motion_mask
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.atlas_networks import AtlasNetworks, Sizes, composite, coordinates, encode
from sfumato.editor.atlas_objective import draw_blocks, losses, matches
from sfumato.editor.decomposition import Decomposition, maps_of, render_frame
from sfumato.editor.layered_atlas import METHOD, Options, check, start
from sfumato.editor.method import Inputs
from sfumato.editor.models import FamilyModels
from sfumato.editor.pixels import to_tensor
from sfumato.editor.raft import flow_by, load_raft
from sfumato.editor.video import Video
from tests.clips import moving_disc
from tests.tiny_models import TinyModels
from tests.unit.editor.resuming import assert_resumes_bit_for_bit, finish

from torchvision.models.optical_flow import raft_small  # isort: skip  (behind torchvision_ops)

SMALL = {
    "width": 32, "foreground_layers": 3, "background_layers": 3, "alpha_layers": 3, "atlas_layers": 6,
    "atlas_bands": 6, "batch_size": 1024, "num_flow_spans": 2,
}  # fmt: skip
FRAMES, MASKS = moving_disc()
CLIP = Inputs(video=Video(FRAMES, 25.0))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a > 0.5) & (b > 0.5)).sum() / ((a > 0.5) | (b > 0.5)).sum())


def random_uv(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_every_loss_has_the_gradient_of_finite_differences() -> None:
    blocks, truth = random_uv(3, 4, 3), random_uv(3, 4, 3, seed=1).detach()
    at, right, below = (random_uv(5, 2, seed=seed) for seed in (2, 3, 4))
    alpha, other = random_uv(5, seed=5), random_uv(5, seed=6)
    colour, mask = random_uv(5, 3, seed=7), random_uv(5, seed=8).detach()
    check = torch.autograd.gradcheck
    assert check(lambda c: terms.colour_loss(c, truth), blocks)
    assert check(lambda c: terms.gradient_loss(c, truth), blocks)
    assert check(lambda *uv: terms.rigidity(*uv, 1.5), (at, right, below))
    assert check(lambda a, b, w: terms.flow_loss(a, b, w, 64.0), (at, right, alpha))
    assert check(terms.alpha_flow_loss, (alpha, other))
    assert check(terms.sparsity_loss, (colour, alpha))
    assert check(lambda logits: terms.bootstrap_loss(4 * logits - 2, mask), alpha)
    layers = torch.stack([colour, random_uv(5, 3, seed=9)])
    assert check(composite, (alpha, layers))


def test_the_networks_have_the_gradient_of_finite_differences() -> None:
    networks = AtlasNetworks(Sizes(8, 3, 2, 3, 6, 2, 3))
    initialise(networks, generator_of(0))
    networks.double()

    def colour(points: torch.Tensor) -> torch.Tensor:
        return composite(networks.alpha(points), networks.colours(*networks.uv(points)))

    assert torch.autograd.gradcheck(colour, random_uv(3, 3))


def test_the_gradient_loss_is_that_of_single_differences() -> None:
    blocks, truth = random_uv(6, 4, 3), random_uv(6, 4, 3, seed=1)
    error = (blocks - truth).detach().view(6, 2, 2, 3)  # y, x
    along_x = (error[:, :, 1] - error[:, :, 0]).square().sum(-1).mean()
    along_y = (error[:, 1] - error[:, 0]).square().sum(-1).mean()
    assert float(terms.gradient_loss(blocks, truth).detach()) == pytest.approx(float(along_x + along_y))


def test_an_opacity_that_is_wrong_and_certain_still_has_a_gradient() -> None:
    logits = torch.tensor([-60.0, 60.0], requires_grad=True)
    terms.bootstrap_loss(logits, torch.tensor([1.0, 0.0])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.5, 0.5])
    alpha = torch.tensor([0.3, 0.8], dtype=torch.float64)
    expected = -(alpha[0].log() + (1 - alpha[1]).log()) / 2
    got = terms.bootstrap_loss(alpha.logit(), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert float(got) == pytest.approx(float(expected))


def test_rigidity_is_least_for_rigid_motion_and_agrees_with_the_matrix_form() -> None:
    turn = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]]).double()
    at = torch.zeros(1, 2, dtype=torch.float64)
    rigid = terms.rigidity(at, turn[:, 0][None], turn[:, 1][None], 1.0)
    assert float(rigid) == pytest.approx(2 * math.sqrt(2), rel=1e-5)
    jacobian = random_uv(2, 2).detach()
    gram = jacobian.T @ jacobian + terms.RIGIDITY_EPSILON * torch.eye(2)
    expected = gram.norm() + torch.linalg.inv(gram).norm()
    got = terms.rigidity(at, jacobian[:, 0][None] / 3, jacobian[:, 1][None] / 3, 3.0)
    assert float(got) == pytest.approx(float(expected))
    assert got > rigid
    # Large and singular, in the precision of training.
    along = 1000 * random_uv(500, 2).detach()
    share = random_uv(500, 1, seed=1).detach()
    at = torch.zeros(500, 2, dtype=torch.float64)
    exact = terms.rigidity(at, along, along * share, 1.0)
    got = terms.rigidity(at.float(), along.float(), (along * share).float(), 1.0)
    assert float(got) == pytest.approx(float(exact), rel=1e-3)


def test_coordinates_and_encoding_are_the_papers() -> None:
    corners = coordinates(torch.tensor([[0.0, 0, 0], [47, 31, 7], [23.5, 15.5, 3.5]]), (8, 32, 48))
    assert torch.allclose(corners[2], torch.zeros(3))
    assert torch.allclose(corners[1], -corners[0])
    assert corners[1].tolist() == pytest.approx([47 / 48, 31 / 48, 7 / 8])
    x = torch.tensor([[0.25]])
    angles = torch.tensor([0.25, 0.5]) * math.pi
    assert torch.allclose(encode(x, 2), torch.cat([angles.sin(), angles.cos()])[None])


def test_flow_is_that_of_the_motion_and_is_not_trusted_where_something_is_covered() -> None:
    flows = flow.estimate(FRAMES, 2)
    assert flows.offsets == (1, -1, 2, -2)
    speed = 0.6 * 48 / 7
    y, x = np.mgrid[:32, :48]
    for row, offset in enumerate(flows.offsets):
        for t in range(8):
            if not 0 <= t + offset < 8:
                assert not flows.consistent[row, t].any()
                continue
            inner = (x - (9.6 + t * speed)) ** 2 + (y - 16) ** 2 < 4**2
            seen = flows.flow[row, t][inner].astype(float)
            assert np.abs(np.median(seen, 0) - [offset * speed, 0]).max() < 0.6
            assert flows.consistent[row, t].mean() > 0.6
    leaving = MASKS[3] & ~MASKS[4]
    ahead = MASKS[4] & ~MASKS[3]
    assert flows.consistent[0, 3][ahead].mean() < flows.consistent[0, 3][~ahead & ~leaving].mean()


def test_raft_is_the_flow_of_a_family_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "raft").mkdir()
    torch.manual_seed(0)
    weights = {name: value.contiguous() for name, value in raft_small().state_dict().items()}
    save_file(weights, tmp_path / "raft" / "model.safetensors")
    models = FamilyModels(tmp_path, torch.device("cpu"), ArtifactStore(tmp_path.as_uri()))
    between = flow_by(models.raft, models.device)
    # The network sees the frames enlarged to 192 x 128; its flow comes back in the frames' own pixels.
    enlarged = [
        F.interpolate(to_tensor(Image.fromarray(f)), size=(128, 192), mode="bilinear") for f in FRAMES[:2]
    ]
    with torch.inference_mode():
        expected = models.raft(2 * enlarged[0] - 1, 2 * enlarged[1] - 1)[-1] / 4
    found = torch.from_numpy(between(FRAMES[0], FRAMES[1]))
    smaller = F.interpolate(expected, size=(32, 48), mode="bilinear", antialias=True)
    assert torch.allclose(found.permute(2, 0, 1)[None], smaller, atol=1e-3)
    flows = flow.estimate(FRAMES[:2], 1, between)
    assert np.allclose(flows.flow[0, 0], found.numpy(), atol=0.01)


@pytest.mark.parametrize("size", [(430, 765), (132, 196), (32, 48)])
def test_rafts_flow_comes_back_at_the_place_it_was_found(size: tuple[int, int]) -> None:
    def linear(first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        """A tenth of each pixel's place, which is linear and so the same in any size."""
        places = torch.meshgrid(*(torch.arange(side) + 0.5 for side in first.shape[-2:]), indexing="xy")
        return [0.1 * torch.stack([places[0].T, places[1].T]).flip(0)[None]]

    frame = np.zeros((*size, 3), np.uint8)
    found = flow_by(linear, torch.device("cpu"))(frame, frame)  # type: ignore[arg-type]
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    assert np.abs(found - 0.1 * np.stack([x, y], -1))[2:-2, 2:-2].max() < 5e-3


@pytest.mark.parametrize("size", [(8, 768), (768, 8), (430, 765)])
def test_raft_is_never_given_more_pixels_than_a_large_frame_has(size: tuple[int, int]) -> None:
    given: list[tuple[int, ...]] = []

    def still(first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        given.append(tuple(first.shape[-2:]))
        return [torch.zeros(1, 2, *first.shape[-2:])]

    frame = np.zeros((*size, 3), np.uint8)
    assert flow_by(still, torch.device("cpu"))(frame, frame).shape == (*size, 2)  # type: ignore[arg-type]
    assert all(128 <= side <= 768 and side % 8 == 0 for side in given[0])


def test_weights_that_are_no_raft_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FailedPrecondition, match="no state dict of torchvision's RAFT"):
        load_raft(tmp_path)


def test_a_mask_is_found_from_motion_from_the_first_frame_and_from_a_scribble() -> None:
    flows = flow.estimate(FRAMES, 1)
    assert iou(motion_mask.mask_of(FRAMES, flows, None, None), MASKS) > 0.8
    first = Image.fromarray((255 * MASKS[0]).astype(np.uint8))
    assert iou(motion_mask.mask_of(FRAMES, flows, first, None), MASKS) > 0.8
    scribble = np.full((32, 48), 128, np.uint8)
    scribble[:6], scribble[26:], scribble[:, 20:] = 0, 0, 0
    scribble[11:21, 6:14] = 255
    assert iou(motion_mask.mask_of(FRAMES, flows, Image.fromarray(scribble), None), MASKS) > 0.8
    whole = Video(np.repeat(MASKS[..., None] * np.uint8(255), 3, -1), 25.0)
    assert iou(motion_mask.mask_of(FRAMES, flows, None, whole), MASKS) == 1


def test_a_mask_without_white_and_a_clip_without_motion_are_refused() -> None:
    flows = flow.estimate(FRAMES, 1)
    with pytest.raises(InvalidArgument, match="white where the foreground is"):
        motion_mask.mask_of(FRAMES, flows, Image.new("L", (48, 32), 100), None)
    still = np.repeat(FRAMES[:1], 4, 0)
    with pytest.raises(InvalidArgument, match="no motion found"):
        motion_mask.mask_of(still, flow.estimate(still, 1), None, None)


def test_pixels_are_drawn_inside_and_matches_follow_the_flow(models: TinyModels) -> None:
    state = start(Options(**SMALL), CLIP, models)
    corner, blocks = draw_blocks(state)
    assert blocks.shape == (256, 4, 3)
    assert (blocks >= 0).all()
    assert (blocks < torch.tensor([48, 32, 8])).all()
    known, there = matches(state, corner)
    moved = there - corner[known]
    assert 0.3 < known.float().mean() < 1
    assert set(moved[:, 2].tolist()) == {-2.0, -1.0, 1.0, 2.0}


def test_a_clip_is_taken_apart(models: TinyModels) -> None:
    options = Options(
        **SMALL, num_iterations=400, learning_rate=4e-3, rate_decay=0.05, num_far_iterations=100,
        num_bootstrap_iterations=250,
    )  # fmt: skip
    state = finish(METHOD, start(options, CLIP, models))
    found = state.decomposition()
    made = np.stack([np.asarray(render_frame(found, t)[0]) for t in range(8)]).astype(float)
    assert 10 * np.log10(255**2 / np.square(made - FRAMES).mean()) > 24
    maps = [maps_of(found, t) for t in range(8)]
    assert iou(np.stack([alpha.numpy() for _, _, alpha in maps]), MASKS) > 0.8
    # The disc's middle has one place in the foreground's atlas, whatever the frame.
    places = torch.stack([maps[t][0][16, round(9.6 + t * 28.8 / 7)] for t in range(8)])
    assert float((places - places.mean(0)).norm(dim=-1).median()) * state.pixels_per_uv < 1.5


def test_it_gives_a_decomposition_that_renders_the_same(models: TinyModels) -> None:
    options = Options(**SMALL, num_iterations=3, num_pretraining_iterations=2)
    state = finish(METHOD, start(options, CLIP, models))
    result = state.result()
    assert list(result) == ["video", "alpha", "foreground", "background", "decomposition"]
    assert result["video"].frames.shape == FRAMES.shape
    assert result["foreground"].size == (96, 96)
    again = Decomposition.of_tensors(result["decomposition"], models.device)
    assert again.frame_rate == 25
    assert render_frame(again, 5)[0].tobytes() == result["video"].frames[5].tobytes()
    assert state.preview().size == (192, 128)


def test_terms_come_and_go(models: TinyModels) -> None:
    options = Options(
        **SMALL,
        num_iterations=4,
        num_pretraining_iterations=1,
        num_far_iterations=1,
        num_bootstrap_iterations=2,
    )
    seen = [set(progress.losses) for progress in METHOD.run(start(options, CLIP, models))]
    always = {"colour", "gradient", "sparsity", "flow", "alpha_flow", "rigidity", "total"}
    assert seen[0] == {"identity", "bootstrap", "total"}
    assert seen[1:] == [always | {"far_rigidity", "bootstrap"}, always | {"bootstrap"}, always, always]


def test_alpha_starts_as_the_mask(models: TinyModels) -> None:
    options = Options(**SMALL, num_iterations=1, num_pretraining_iterations=150, learning_rate=4e-3)
    state = start(options, CLIP, models)
    for progress in METHOD.run(state):
        if progress.iteration == 150:
            found = state.decomposition()
            alpha = np.stack([maps_of(found, t)[2].numpy() for t in range(8)])
    assert iou(alpha, state.mask.numpy()) > 0.6


def test_the_sparsity_darkens_the_atlas_and_leaves_alpha_as_it_is(models: TinyModels) -> None:
    state = start(Options(**SMALL), CLIP, models)
    losses(state, *draw_blocks(state), 0)["sparsity"].backward()
    assert all(parameter.grad is None for parameter in state.networks.opacity.parameters())
    assert all(parameter.grad.any() for parameter in state.networks.atlas.layers[-1].parameters())


def test_it_resumes_bit_for_bit(models: TinyModels) -> None:
    options = Options(**SMALL, num_iterations=4, num_pretraining_iterations=1, seed=3)
    assert_resumes_bit_for_bit(METHOD, options, CLIP, models, at=3)


def test_networks_and_a_batch_that_are_too_large_together_are_refused(models: TinyModels) -> None:
    deep = {f"{name}_layers": 12 for name in ("foreground", "background", "alpha", "atlas")}
    most = "at most 25890, for networks of this width and depth, but is 100000"
    with pytest.raises(ResourceExhausted, match=most) as error:
        start(Options(width=512, batch_size=100_000, **deep), CLIP, models)
    assert error.value.field == "batch_size"
    check(Options(width=512, batch_size=25_890, **deep), CLIP)
    check(Options(batch_size=90_000), CLIP)


def test_it_refuses_no_video_and_a_single_frame(models: TinyModels) -> None:
    with pytest.raises(InvalidArgument, match="video must be given"):
        start(Options(), Inputs(), models)
    with pytest.raises(InvalidArgument, match="at least 2 frames"):
        start(Options(), Inputs(video=Video(FRAMES[:1], 25.0)), models)


def test_it_refuses_a_video_that_is_too_narrow_once_it_is_shrunk() -> None:
    narrow = Inputs(video=Video(np.zeros((2, 16, 2000, 3), np.uint8), 25.0))
    said = "at least 8 pixels a side, but is 2000x16, shrunk to 768 on the longer side"
    with pytest.raises(InvalidArgument, match=said):
        check(Options(), narrow)
    with pytest.raises(InvalidArgument, match="48x32, shrunk to 10"):
        check(Options(size=10), CLIP)
    check(Options(size=12), CLIP)
