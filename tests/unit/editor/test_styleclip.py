"""StyleCLIP's optimisation and mapper, and the inversion before them."""

import pytest
import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.editor import styleclip_mapper, styleclip_mapper_use, styleclip_optimization
from sfumato.editor.inversion import keys_distance, ramped
from sfumato.editor.method import Inputs
from sfumato.editor.pixels import to_image, to_tensor
from tests.tiny_models import TinyModels
from tests.unit.editor.resuming import assert_resumes_bit_for_bit, finish

Optimization = styleclip_optimization.Options
NO_IMAGE = Inputs()


def face(models: TinyModels, seed: int = 1) -> Image.Image:
    """A picture that the generator can make."""
    stylegan = models.stylegan2("faces")
    w = stylegan.mapping(torch.randn(1, stylegan.d, generator=torch.Generator().manual_seed(seed)))
    return to_image((stylegan(stylegan.spread(w)) + 1) / 2)


def optimised(models: TinyModels, **more: float) -> styleclip_optimization.State:
    options = Optimization(prompt="an angry face", num_iterations=30, **more)  # type: ignore[arg-type]
    return finish(styleclip_optimization.METHOD, styleclip_optimization.start(options, NO_IMAGE, models))


def test_the_rate_warms_up_and_fades() -> None:
    rates = [ramped(0.1, k / 100) for k in range(100)]
    assert rates[0] == 0
    assert rates[2] == pytest.approx(0.04)
    assert rates[5:76] == pytest.approx([0.1] * 71)
    assert rates[90] == pytest.approx(0.1 * 0.3454915)
    assert ramped(0.1, 1.0) == 0


def test_the_text_is_approached_and_l2_and_id_hold_back(models: TinyModels) -> None:
    def clip_distance(state: styleclip_optimization.State) -> float:
        embed = state.clip.embed_images(state.paint(state.latents)).detach()
        return float(1 - embed @ state.text)

    free = optimised(models, lambda_l2=0.0, lambda_id=0.0)
    before = float(1 - free.clip.embed_images(free.paint(free.start)) @ free.text)
    assert clip_distance(free) < before

    def moved(state: styleclip_optimization.State) -> float:
        return float((state.latents - state.start).detach().norm())

    distances = [moved(optimised(models, lambda_l2=weight, lambda_id=0.0)) for weight in (0.0, 0.01, 1.0)]
    assert distances[0] > distances[1] > distances[2]

    def similarity(state: styleclip_optimization.State) -> float:
        with torch.no_grad():
            features = models.identity(
                torch.cat([state.paint(state.latents), state.paint(state.start)]) * 2 - 1
            )
        return float(features[0] @ features[1])

    assert similarity(optimised(models, lambda_l2=0.0, lambda_id=10.0)) > similarity(free)


def test_its_gradient_agrees_with_finite_differences(models: TinyModels) -> None:
    options = Optimization(prompt="an angry face", lambda_l2=0.3, lambda_id=0.7)
    state = styleclip_optimization.start(options, NO_IMAGE, models)
    latents = (state.start + 0.1).requires_grad_()

    def total(w_plus: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(styleclip_optimization.losses(state, w_plus).values())).sum()

    gradient = torch.autograd.grad(total(latents), latents)[0]
    direction, step = gradient / gradient.norm(), 1e-2
    with torch.no_grad():
        difference = (total(latents + step * direction) - total(latents - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=0.02)


def test_an_image_is_inverted_before_it_is_edited(models: TinyModels) -> None:
    image = face(models)
    options = Optimization(prompt="an angry face", num_iterations=1, num_inversion_iterations=60)
    state = styleclip_optimization.start(options, Inputs(image), models)
    before = (to_tensor(state.preview()) - to_tensor(image)).square().mean()
    names = [set(progress.losses) for progress in styleclip_optimization.METHOD.run(state)]
    assert names[59] == {"inversion_mse", "inversion_keys", "total"}
    assert names[60] == {"clip", "l2", "id", "total"}
    assert len(names) == 61
    inverted = state.result()["start"]
    assert (to_tensor(inverted) - to_tensor(image)).square().mean() < 0.2 * before
    assert float(keys_distance(state.clip, to_tensor(image), to_tensor(image))) < 1e-5


def test_w_is_one_latent_for_all_layers(models: TinyModels) -> None:
    options = Optimization(prompt="an angry face", num_iterations=2, latent_space="w")
    state = finish(styleclip_optimization.METHOD, styleclip_optimization.start(options, NO_IMAGE, models))
    assert state.latents.shape == (1, 1, 10)


@pytest.mark.parametrize("at", [2, 3, 5])
def test_optimisation_resumes_bit_for_bit(models: TinyModels, at: int) -> None:
    options = Optimization(
        prompt="an angry face", num_iterations=4, num_inversion_iterations=3, num_cutouts=2
    )
    inputs = Inputs(face(models))
    assert_resumes_bit_for_bit(styleclip_optimization.METHOD, options, inputs, models, at)


def train_mapper(models: TinyModels, num_iterations: int) -> styleclip_mapper.State:
    options = styleclip_mapper.Options(
        prompt="an angry face", num_iterations=num_iterations, batch_size=4, lambda_l2=0.0, lambda_id=0.0,
        learning_rate=10.0,
    )  # fmt: skip
    return finish(styleclip_mapper.METHOD, styleclip_mapper.start(options, NO_IMAGE, models))


def test_a_trained_mapper_moves_new_faces_to_its_text_in_one_pass(models: TinyModels) -> None:
    mapper = train_mapper(models, 60).result()["mapper"]

    def similarity(strength: float, seed: int) -> float:
        options = styleclip_mapper_use.Options(mapper="operations/1", strength=strength, seed=seed)
        state = finish(
            styleclip_mapper_use.METHOD,
            styleclip_mapper_use.start(options, Inputs(earlier=mapper), models),
        )
        assert state.num_iterations == 1
        embed = state.clip.embed_images(state.paint(state.latents)).detach()
        return float(embed @ state.clip.embed_texts(["an angry face"])[0])

    gains = [similarity(1.0, seed) - similarity(0.0, seed) for seed in range(70, 76)]
    assert sum(gain > 0 for gain in gains) >= 5
    assert sum(gains) > 0


def test_the_mappers_distance_is_the_mean_of_squares_of_their_code(models: TinyModels) -> None:
    """Its root, summed over W+, outweighs CLIP's whole term: the mapper then learns to do nothing."""
    options = styleclip_mapper.Options(prompt="an angry face", lambda_l2=0.8)
    state = styleclip_mapper.start(options, NO_IMAGE, models)
    w_plus = state.sample(3, torch.Generator().manual_seed(0))
    edited = w_plus + state.mapper(w_plus)
    expected = 0.8 * torch.nn.functional.mse_loss(edited, w_plus)
    torch.testing.assert_close(styleclip_mapper.losses(state, w_plus)["l2"], expected)


def test_mapper_training_resumes_bit_for_bit_over_a_lookahead(models: TinyModels) -> None:
    options = styleclip_mapper.Options(prompt="an angry face", num_iterations=8)
    assert_resumes_bit_for_bit(styleclip_mapper.METHOD, options, NO_IMAGE, models, at=5)


def test_something_else_than_a_mapper_is_refused(models: TinyModels) -> None:
    options = styleclip_mapper_use.Options(mapper="operations/1")
    with pytest.raises(InvalidArgument, match="trained a mapper"):
        styleclip_mapper_use.start(options, NO_IMAGE, models)
    with pytest.raises(InvalidArgument, match="another shape"):
        styleclip_mapper_use.start(options, Inputs(earlier={"faces/x": torch.zeros(1)}), models)
