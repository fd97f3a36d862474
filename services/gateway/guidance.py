"""Guidance: which rows of conditioning a step needs, and how predictions and gradients combine.

Classifier-free: Ho and Salimans 2022, equation 6; rescaled: Lin et al. 2023, equations 15 and 16. By a
gradient of log p(y | x_t), or of CLIP's similarity in its place: Dhariwal and Nichol 2021, algorithms 1
(ancestral) and 2 (score form); Nichol et al. 2021 (GLIDE), section 2.3.

Here x_t is variance preserving: sqrt(abar_t) x_0 + sqrt(1 - abar_t) e. All tensors are [1, C, h, w] but for
rows.
"""

from dataclasses import dataclass

import torch

from sfumato.common.errors import SfumatoError
from sfumato.common.linear_steps import combined

EPSILON, V_PREDICTION = "epsilon", "v_prediction"


@dataclass(frozen=True)
class Point:
    """Where the UNet is asked: one evaluation of one trajectory."""

    index: int  # of the evaluation, from 0
    num_steps: int  # evaluations of the trajectory
    model_input: torch.Tensor  # x_t
    timestep: float  # t
    alpha_cumprod: float  # abar_t of x_t's own noise level
    prediction_type: str  # EPSILON or V_PREDICTION

    def predicted_x0(self, model_input: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """x0 from x_t and eps or v (Ho et al. 2020, equation 15; Salimans and Ho 2022, section 4)."""
        return x0_of(model_input, prediction, self.alpha_cumprod, self.prediction_type)


@dataclass(frozen=True)
class Guided:
    """A step's prediction, and the gradient s grad log p(y | x_t) that it is still to follow, or None."""

    noise_pred: torch.Tensor
    gradient: torch.Tensor | None = None


def conditioning_texts(prompt: str, negative_prompt: str, guided: bool) -> list[str]:
    """Texts of the conditioning rows: the null (or negative) text first, as in diffusers."""
    return [negative_prompt, prompt] if guided else [prompt]


def row_weights(guidance_scale: float) -> tuple[float, float]:
    """What the predictions for null text and prompt weigh in z_null + s (z_c - z_null)."""
    return 1 - guidance_scale, guidance_scale


def classifier_free(noise_pred: torch.Tensor, guidance_scale: float, rescale: float = 0.0) -> torch.Tensor:
    """z_null + s (z_c - z_null), its standard deviation set back to that of z_c by the share `rescale`.

    Args:
        noise_pred: [2, ...] for the null text and the prompt, or [1, ...] for the prompt alone.
        guidance_scale: s.
        rescale: phi, 0 to 1; 0: off.

    Returns:
        [1, ...].
    """
    if len(noise_pred) == 1:
        return noise_pred
    guided = combined(zip(row_weights(guidance_scale), noise_pred.split(1), strict=True))
    if rescale == 0:
        return guided
    noise_pred_text = noise_pred[1:]
    rescaled = guided * (noise_pred_text.std() / guided.std())
    return rescale * rescaled + (1 - rescale) * guided


def finite(noise_pred: torch.Tensor, index: int) -> torch.Tensor:
    """Step `index`'s prediction; raises SfumatoError where it has NaN or infinity."""
    if not bool(torch.isfinite(noise_pred).all()):
        raise SfumatoError(f"The noise prediction of step {index + 1} is not finite; lower guidance_scale")
    return noise_pred


def x0_of(
    model_input: torch.Tensor, prediction: torch.Tensor, alpha_cumprod: float, prediction_type: str
) -> torch.Tensor:
    """The predicted x0, from eps or v."""
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == V_PREDICTION:
        return signal * model_input - noise * prediction
    return (model_input - noise * prediction) / signal


def score_form(
    prediction: torch.Tensor, gradient: torch.Tensor, alpha_cumprod: float, prediction_type: str
) -> torch.Tensor:
    """eps' = eps - sqrt(1 - abar) gradient; for v = sqrt(abar) eps - sqrt(1 - abar) x0 the same change of
    eps.

    At constant x_t, d v / d eps = 1 / sqrt(abar).
    """
    change = (1 - alpha_cumprod) ** 0.5 * gradient
    return prediction - (change / alpha_cumprod**0.5 if prediction_type == V_PREDICTION else change)


def clamped(gradient: torch.Tensor, limit: float) -> torch.Tensor:
    """The gradient, scaled down to the limit where its root mean square is beyond it; 0: no limit."""
    magnitude = float(gradient.square().mean().sqrt())
    return gradient * (limit / magnitude) if 0 < limit < magnitude else gradient
