"""What SDXL's UNets are told beside the prompt, at the published sizes."""

from types import SimpleNamespace

import pytest

from sfumato.denoiser.conditioning import needed


@pytest.mark.parametrize(("width", "tokens", "num_ids"), [(2816, 2048, 6), (2560, 1280, 5)])
def test_base_and_refiner_are_told_apart_by_their_configuration(
    width: int, tokens: int, num_ids: int
) -> None:
    """unet/config.json of stable-diffusion-xl-base-1.0 and -refiner-1.0: both pool to 1280."""
    config = SimpleNamespace(
        addition_embed_type="text_time", projection_class_embeddings_input_dim=width,
        addition_time_embed_dim=256, cross_attention_dim=tokens, class_embed_type=None,
        encoder_hid_dim_type=None, time_cond_proj_dim=None,
    )  # fmt: skip
    assert needed(config) == {"pooled_prompt_embeds": (1280,), "time_ids": (num_ids,)}
