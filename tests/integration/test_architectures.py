"""SDXL, v-prediction and latent consistency models: the images are those of diffusers' pipelines."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.gateway.sampling import make_scheduler
from sfumato_client import Client, SfumatoError
from sfumato_client.stack import Stack, local_stack
from tests.integration.test_parity import as_png, largest_difference
from tests.tiny_variants import save_lcm, save_refiner, save_sdxl, save_v_prediction

PROMPT, NEGATIVE, SEED, STEPS, SCALE, TOLERANCE = "a cat", "a dog", 3, 6, 4.0, 2
SAVED: dict[str, Callable[[Path], Path]] = {
    "sdxl": save_sdxl,
    "refiner": save_refiner,
    "v_prediction": save_v_prediction,
    "lcm": save_lcm,
}


@pytest.fixture(scope="module", params=SAVED)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Stack]]:
    """All services with a family of that architecture."""
    folder = tmp_path_factory.mktemp("architectures")
    family = SAVED[request.param](folder / request.param)
    # One engine each way: onnxruntime's graph of the UNet is exported here, the rest is torch's.
    settings = {"SFUMATO_ENCODER_ENGINE": "torch", "SFUMATO_DECODER_ENGINE": "torch"}
    settings["SFUMATO_DENOISER_ONNX_CACHE"] = str(folder / "onnx")
    with local_stack(family, log_dir=folder, settings=settings) as stack:
        yield request.param, stack


def pipeline_of(stack: Stack, name: str = "DiffusionPipeline") -> Any:
    """diffusers' own, in float32."""
    pipeline: Any = getattr(diffusers, name).from_pretrained(stack.family, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(pipeline: Any, scheduler: str, **arguments: Any) -> Image.Image:
    """What the pipeline makes."""
    pipeline.scheduler = make_scheduler(scheduler, dict(pipeline.scheduler.config))
    generator = torch.Generator().manual_seed(SEED)
    image: Image.Image = pipeline(PROMPT, generator=generator, guidance_scale=SCALE, **arguments).images[0]
    return image


def test_text_to_image_equals_the_pipeline(served: tuple[str, Stack]) -> None:
    name, stack = served
    if name == "refiner":
        pytest.skip("it is a stage behind another model, for images")
    pipeline = pipeline_of(stack)
    schedulers = ("lcm",) if name == "lcm" else ("ddim", "euler", "dpmpp_2m")
    # With SDXL an empty negative prompt is not a text but zeros, so both are tried.
    negatives: tuple[str | None, ...] = (None,) if name == "lcm" else (None, NEGATIVE)
    with Client(stack.target, timeout=120) as client:
        for scheduler in schedulers:
            for negative in negatives:
                given = {"negative_prompt": negative} if negative else {}
                expected = reference(
                    pipeline, scheduler, num_inference_steps=STEPS, height=64, width=80, **given
                )
                result = client.generate(
                    PROMPT, seed=SEED, num_inference_steps=STEPS, guidance_scale=SCALE, scheduler=scheduler,
                    height=64, width=80, **given,
                )  # fmt: skip
                assert largest_difference(result.images[0].data, expected) <= TOLERANCE


def test_image_to_image_equals_the_pipeline(served: tuple[str, Stack]) -> None:
    name, stack = served
    if name == "lcm":
        pytest.skip("its image-to-image pipeline skips other timesteps")
    pipeline = pipeline_of(stack)
    is_xl = name in ("sdxl", "refiner")
    kind = "StableDiffusionXLImg2ImgPipeline" if is_xl else "StableDiffusionImg2ImgPipeline"
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    more = {"requires_aesthetics_score": name == "refiner"} if is_xl else {"requires_safety_checker": False}
    other: Any = getattr(diffusers, kind)(**pipeline.components, **more)
    other.set_progress_bar_config(disable=True)
    expected = reference(
        other, "ddim", num_inference_steps=STEPS, image=picture, strength=0.7, negative_prompt=NEGATIVE
    )
    with Client(stack.target, timeout=120) as client:
        result = client.generate(
            PROMPT, negative_prompt=NEGATIVE, seed=SEED, num_inference_steps=STEPS, guidance_scale=SCALE,
            scheduler="ddim", image=as_png(picture), strength=0.7,
        )  # fmt: skip
    assert largest_difference(result.images[0].data, expected) <= TOLERANCE


def test_guidance_edits_and_maps_work_or_say_why(served: tuple[str, Stack]) -> None:
    """What was built on Stable Diffusion 1 takes the other architectures' conditioning along."""
    name, stack = served
    with Client(stack.target, timeout=120) as client:
        for kind in ("clip", "none"):
            assert client.generate(PROMPT, seed=SEED, num_inference_steps=4, guidance=kind).images
        result = client.generate(PROMPT, seed=SEED, num_inference_steps=4, attention_maps={})
        assert result.attention[0].words == ["a", "cat"]
        if name == "lcm":
            with pytest.raises(SfumatoError, match="guidance scale as an input") as refused:
                client.edit_prompt(PROMPT, "a dog", seed=SEED, num_inference_steps=4)
            assert refused.value.code == "FAILED_PRECONDITION"
        else:
            edited = client.edit_prompt(PROMPT, "a dog", seed=SEED, num_inference_steps=4)
            assert len(edited.images) == 2


def test_defaults_are_those_of_the_architecture(served: tuple[str, Stack]) -> None:
    name, stack = served
    with Client(stack.target, timeout=120) as client:
        accepted = client.generate(PROMPT, seed=SEED).parameters
    assert accepted.num_inference_steps == (4 if name == "lcm" else 30)


def test_a_size_in_the_conditioning_changes_sdxls_image(served: tuple[str, Stack]) -> None:
    """Its UNet hears of the size: the same latents of another shape of image are another image."""
    name, stack = served
    if name != "sdxl":
        pytest.skip("only SDXL's UNet is told")
    pipeline = pipeline_of(stack)
    arguments = {"num_inference_steps": 2, "height": 64, "width": 64}
    told = np.asarray(reference(pipeline, "ddim", **arguments), dtype=np.int16)
    lied = reference(pipeline, "ddim", **arguments, original_size=(2048, 2048))
    with Client(stack.target, timeout=120) as client:
        data = client.generate(
            PROMPT, seed=SEED, num_inference_steps=2, guidance_scale=SCALE, scheduler="ddim"
        ).images[0].data  # fmt: skip
    got = np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16)
    assert np.abs(got - told).max() <= TOLERANCE < np.abs(np.asarray(lied, dtype=np.int16) - told).max()
