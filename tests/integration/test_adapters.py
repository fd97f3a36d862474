"""LoRA adapters chosen per request: the images are the pipeline's with the same change, side by side."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from sfumato.gateway.sampling import make_scheduler
from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.stack import Stack, local_stack
from tests.integration.test_parity import largest_difference
from tests.tiny_family import save_tiny_family
from tests.unit.test_adapters import TEXT_LAYERS, UNET_LAYERS, Pairs, layer_of, pairs_for, peft

STEPS, SEED, SCALE, TOLERANCE = 5, 4, 4.0, 2
NAMES = ("first", "second")


def pairs_of(pipeline: Any, sign: float) -> tuple[Pairs, Pairs]:
    """The adapter's halves, of both parts."""
    found = []
    for model, names in ((pipeline.unet, UNET_LAYERS), (pipeline.text_encoder, TEXT_LAYERS)):
        found.append({name: (sign * a, b) for name, (a, b) in pairs_for(model, names).items()})
    return found[0], found[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The tiny family with two adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    family = save_tiny_family(folder / "tiny")
    pipeline: Any = StableDiffusionPipeline.from_pretrained(family, torch_dtype=torch.float32)
    (family / "adapters").mkdir()
    for name, sign in zip(NAMES, (1.0, -1.0), strict=True):
        save_file(peft(*pairs_of(pipeline, sign)), family / "adapters" / f"{name}.safetensors")
    settings = {f"SFUMATO_{part}_ENGINE": "torch" for part in ("ENCODER", "DECODER", "DENOISER")}
    settings["SFUMATO_DENOISER_MAX_ADAPTERS"] = "1"  # so that they take each other's place
    with local_stack(family, log_dir=folder, settings=settings) as stack:
        yield stack


def expected(family: Path, sign: float) -> Image.Image:
    """The pipeline's image, its weights changed by hand."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(family, torch_dtype=torch.float32)
    if sign:
        for model, pairs in zip(
            (pipeline.unet, pipeline.text_encoder), pairs_of(pipeline, sign), strict=True
        ):
            for name, (a, b) in pairs.items():
                weight = layer_of(model, name)
                weight.data += (b.flatten(1) @ a.flatten(1)).view(weight.shape)
    pipeline.scheduler = make_scheduler("ddim", dict(pipeline.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    image: Image.Image = pipeline(
        "a cat",
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    return image


async def test_each_request_has_its_own_adapter_beside_the_others(served: Stack) -> None:
    wanted = {"": 0.0, "first": 1.0, "second": -1.0}
    async with AsyncClient(served.target, timeout=120) as client:

        async def image(adapter: str) -> bytes:
            result = await client.generate(
                "a cat", seed=SEED, num_inference_steps=STEPS, guidance_scale=SCALE, scheduler="ddim",
                adapter=adapter,
            )  # fmt: skip
            return result.images[0].data

        names = [*wanted, *wanted]
        images = await asyncio.gather(*(image(name) for name in names))
    for name, data in zip(names, images, strict=True):
        assert largest_difference(data, expected(served.family, wanted[name])) <= TOLERANCE
    assert len(set(images)) == 3


async def test_gradients_maps_and_edits_go_through_the_adapter_too(served: Stack) -> None:
    async with AsyncClient(served.target, timeout=120) as client:
        given: dict[str, Any] = {"seed": SEED, "num_inference_steps": 3}
        for options in ({"guidance": "cfg+clip"}, {"attention_maps": {}}):
            plain, adapted = [
                (await client.generate("a cat", **given, **options, adapter=name)).images[0].data
                for name in ("", "first")
            ]
            assert plain != adapted


async def test_an_unknown_adapter_is_refused_and_known_ones_are_listed(served: Stack) -> None:
    async with AsyncClient(served.target, timeout=60) as client:
        with pytest.raises(SfumatoError, match="first, second") as refused:
            await client.generate("a cat", adapter="third")
        assert (refused.value.code, refused.value.field) == ("NOT_FOUND", "adapter")
        (family,) = await client.list_families()
    assert list(family.adapters) == list(NAMES)
