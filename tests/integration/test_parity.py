"""The services' images are those of diffusers' pipelines of the same family: within 2/255 at every pixel."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image, ImageDraw

from sfumato.gateway.sampling import make_scheduler
from sfumato_client import AsyncClient

SCHEDULERS = ("ddim", "pndm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "heun")
PROMPT, NEGATIVE, SEED, STEPS, SCALE = "a cat on a blue background", "a red star", 11, 12, 4.0
TOLERANCE = 2  # of 255


@pytest.fixture(scope="module")
def pipeline(emoji_family: Path) -> Any:
    """diffusers' own, in float32."""
    loaded: Any = StableDiffusionPipeline.from_pretrained(emoji_family, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Something with edges and colours."""
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    ImageDraw.Draw(image).ellipse((14, 14, 50, 50), "orange", "navy", 3)
    return image


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """Repaint the right half."""
    image = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(image).rectangle((32, 0, 63, 63), 255)
    return image


def as_png(image: Image.Image) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def largest_difference(data: bytes, expected: Image.Image) -> int:
    """Over all pixels and channels, of 255."""
    got = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)
    return int(np.abs(got - np.asarray(expected.convert("RGB"), dtype=np.int16)).max())


def reference(pipeline: Any, kind: type, scheduler: str, **arguments: Any) -> Image.Image:
    """What the pipeline of that kind makes."""
    pipe: Any = kind(**pipeline.components, requires_safety_checker=False)
    pipe.scheduler = make_scheduler(scheduler, pipeline.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    result = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        generator=torch.Generator().manual_seed(SEED),
        **arguments,
    )
    image: Image.Image = result.images[0]
    return image


async def ours(client: AsyncClient, scheduler: str, **arguments: Any) -> bytes:
    """What the services make."""
    result = await client.generate(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        seed=SEED,
        scheduler=scheduler,
        **arguments,
    )
    return result.images[0].data


@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_text_to_image_equals_the_pipeline(client: AsyncClient, pipeline: Any, scheduler: str) -> None:
    expected = reference(pipeline, StableDiffusionPipeline, scheduler)
    assert largest_difference(await ours(client, scheduler), expected) <= TOLERANCE


async def test_unguided_sampling_equals_the_pipeline(client: AsyncClient, pipeline: Any) -> None:
    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(SEED)
    image = pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator).images[0]
    result = await client.generate(
        PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, seed=SEED, scheduler="ddim"
    )
    assert largest_difference(result.images[0].data, image) <= TOLERANCE


async def test_a_size_that_is_not_the_familys_own_equals_the_pipeline(
    client: AsyncClient, pipeline: Any
) -> None:
    expected = reference(pipeline, StableDiffusionPipeline, "ddim", width=96, height=80)
    assert largest_difference(await ours(client, "ddim", width=96, height=80), expected) <= TOLERANCE


@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_image_to_image_equals_the_pipeline(
    client: AsyncClient, pipeline: Any, picture: Image.Image, scheduler: str
) -> None:
    expected = reference(pipeline, StableDiffusionImg2ImgPipeline, scheduler, image=picture, strength=0.6)
    data = await ours(client, scheduler, image=as_png(picture), strength=0.6)
    assert largest_difference(data, expected) <= TOLERANCE


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_inpainting_equals_the_pipeline(
    client: AsyncClient,
    pipeline: Any,
    picture: Image.Image,
    mask: Image.Image,
    scheduler: str,
    strength: float,
) -> None:
    channels = pipeline.unet.config.in_channels
    # The pipeline knows a UNet without mask channels only as one of 4 channels, and asks no more of it.
    pipeline.unet.register_to_config(in_channels=4)
    try:
        expected = reference(
            pipeline,
            StableDiffusionInpaintPipeline,
            scheduler,
            image=picture,
            mask_image=mask,
            strength=strength,
            width=64,
            height=64,
        )
    finally:
        pipeline.unet.register_to_config(in_channels=channels)
    data = await ours(client, scheduler, image=as_png(picture), mask=as_png(mask), strength=strength)
    assert largest_difference(data, expected) <= TOLERANCE


async def test_inpainting_keeps_what_the_mask_keeps(
    client: AsyncClient, picture: Image.Image, mask: Image.Image
) -> None:
    """The kept half stays nearer to the input than the repainted half."""
    data = await ours(client, "ddim", image=as_png(picture), mask=as_png(mask), strength=1.0)
    got = np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32)
    error = np.abs(got - np.asarray(picture, dtype=np.float32))
    assert error[:, :24].mean() < error[:, 40:].mean()


async def test_image_i_of_a_request_is_the_image_of_seed_plus_i(client: AsyncClient) -> None:
    several = await client.generate(PROMPT, seed=5, num_images=3, num_inference_steps=6)
    assert [image.seed for image in several.images] == [5, 6, 7]
    alone = await client.generate(PROMPT, seed=7, num_inference_steps=6)
    assert several.images[2].data == alone.images[0].data
