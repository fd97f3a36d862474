"""CLIP losses against closed forms and finite differences."""

import math

import torch
from torch.nn import functional as F

from sfumato.editor.losses import (
    DISTANCES,
    Targets,
    clamp_with_gradient,
    cosine_distance,
    directional_loss,
    prompt_loss,
    spherical_distance,
)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_distances_are_functions_of_the_angle() -> None:
    for degrees in (1, 30, 90, 179):
        angle = math.radians(degrees)
        a = torch.tensor([1.0, 0.0], dtype=torch.float64)
        b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        # The chord of an angle is 2 sin(angle / 2).
        assert math.isclose(float(spherical_distance(a, b)), angle**2 / 2, rel_tol=1e-4)
        assert math.isclose(float(cosine_distance(a, b)), 1 - math.cos(angle), abs_tol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    targets = Targets(
        unit(3, 8, seed=1), torch.tensor([1.0, -0.5, 2.0]).double(), torch.full((3,), -9.0).double()
    )
    for distance in DISTANCES:
        views = unit(4, 8).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, d=distance: prompt_loss(x, targets, d), views)
    change = unit(4, 8, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: directional_loss(x, unit(1, 8, seed=3)).sum(), change)


def test_the_gradient_at_the_target_is_finite() -> None:
    a = unit(1, 8).requires_grad_()
    spherical_distance(a, a.detach()).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_a_negative_weight_pushes_away_and_a_stop_ends_the_pull() -> None:
    view = unit(1, 8).requires_grad_()
    target = unit(1, 8, seed=1)

    def gradient(weight: float, stop: float) -> torch.Tensor:
        targets = Targets(target, torch.tensor([weight]).double(), torch.tensor([stop]).double())
        return torch.autograd.grad(prompt_loss(view, targets), view)[0]

    assert torch.allclose(gradient(-1, -math.inf), -gradient(1, -math.inf))
    assert torch.equal(gradient(1, 100.0), torch.zeros_like(view))


def test_the_clamp_lets_through_only_gradients_that_lead_back() -> None:
    x = torch.tensor([-0.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    clamped = clamp_with_gradient(x)
    assert clamped.tolist() == [0, 0, 0.5, 1, 1]
    # Descent moves against the gradient: -1 raises x, +1 lowers it.
    clamped.backward(torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [-1, 0, 1, 0, 1]
