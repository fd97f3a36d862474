"""Prompt-to-prompt through the services."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from sfumato_client import AsyncClient, SfumatoError

SOURCE, TARGET = "a cat on a blue background", "a dog on a blue background"
OPTIONS: dict[str, Any] = {"seed": 4, "num_inference_steps": 8}


def pixels(data: bytes) -> np.ndarray:
    """int16, so that differences have a sign."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


async def test_the_source_is_the_image_that_generate_makes_and_the_target_another(
    client: AsyncClient,
) -> None:
    result = await client.edit_prompt(SOURCE, TARGET, **OPTIONS)
    generated = await client.generate(SOURCE, scheduler="ddim", **OPTIONS)
    source, target = (pixels(image.data) for image in result.images)
    assert np.abs(source - pixels(generated.images[0].data)).max() <= 1
    assert np.abs(source - target).max() > 10
    assert result.parameters.kind == 1  # replace, by the number of words
    assert result.num_steps == 8


async def test_the_same_prompt_gives_the_same_image(client: AsyncClient) -> None:
    result = await client.edit_prompt(SOURCE, SOURCE, **OPTIONS)
    assert result.images[0].data == result.images[1].data


def round_trip(family: Path, data: bytes) -> np.ndarray:
    """The image as the autoencoder alone gives it back: what no inversion can better."""
    vae: Any = AutoencoderKL.from_pretrained(family / "vae", torch_dtype=torch.float32)
    image = torch.from_numpy(pixels(data)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(image).latent_dist.mean).sample[0]
    back: np.ndarray = ((decoded.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    return back


async def test_an_image_is_inverted_and_edited(client: AsyncClient, emoji_family: Path) -> None:
    made = await client.generate(SOURCE, seed=4, num_inference_steps=8)
    given = made.images[0].data
    result = await client.edit_prompt(
        SOURCE, TARGET, image=given, num_inference_steps=20, blend_words=["cat", "dog"]
    )
    assert result.num_steps == 40
    source, target = (pixels(image.data) for image in result.images)
    assert np.abs(source - round_trip(emoji_family, given)).mean() < 2
    assert np.abs(source - target).max() > 10


@pytest.mark.parametrize(
    ("field", "target", "options"),
    [
        ("kind", "a dog", {"kind": "replace"}),
        ("target_prompt", "", {}),
        ("weights.word", TARGET, {"weights": {"fox": 2.0}}),
        ("weights.scale", TARGET, {"weights": {"dog": 2.5}}),
        ("blend_words", TARGET, {"blend_words": ["fox"]}),
        ("cross_replace", TARGET, {"cross_replace": 1.5}),
        ("image", TARGET, {"image": b"GIF89a", "seed": None}),
        ("seed", TARGET, {"image": b"GIF89a"}),
        ("num_inference_steps", TARGET, {"num_inference_steps": 0}),
    ],
)
async def test_a_mistake_names_its_field(
    client: AsyncClient, field: str, target: str, options: dict[str, Any]
) -> None:
    with pytest.raises(SfumatoError) as error:
        await client.edit_prompt(SOURCE, target, **{**OPTIONS, **options})
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", field)
    assert error.value.limit
