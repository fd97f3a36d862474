"""Guidance: which rows of conditioning a step needs, and how their predictions combine."""

import torch


def conditioning_texts(prompt: str, negative_prompt: str, guided: bool) -> list[str]:
    """Texts of the conditioning rows: the null (or negative) text first, as in diffusers."""
    return [negative_prompt, prompt] if guided else [prompt]


def classifier_free(noise_pred: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """z_null + s (z_c - z_null) (Ho and Salimans 2022, equation 6).

    Args:
        noise_pred: [2, ...] for the null text and the prompt, or [1, ...] for the prompt alone.
        guidance_scale: s.

    Returns:
        [1, ...].
    """
    if len(noise_pred) == 1:
        return noise_pred
    noise_pred_null, noise_pred_text = noise_pred.chunk(2)
    return noise_pred_null + guidance_scale * (noise_pred_text - noise_pred_null)
