"""At the published sizes the services' images are those of diffusers' pipelines, and CLIP's open_clip's.

Random weights; few steps, small images: minutes a family and up to 17 GB of memory, so `make full-size`, not
`make test`. The reference runs first and is gone before the services start.
"""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from sfumato.common.clip import clip_source
from sfumato.common.family_check import check_family
from sfumato.encoder.engine_torch import JointEncoder
from sfumato.gateway.sampling import make_scheduler
from sfumato_client import Client
from sfumato_client.stack import local_stack
from tests.full_size.models import save_family
from tests.integration.test_parity import largest_difference
from tests.unit.test_clip_sources import check_embeddings, saved

PROMPT, NEGATIVE, SEED, STEPS, SCALE, SIDE, TOLERANCE = "a cat", "a dog", 5, 3, 4.0, 128, 2
# Where the families go; they are large, and of use again.
FOLDER = os.environ.get("SFUMATO_FULL_SIZE_DIR", "")


def reference(family: Path, scheduler: str) -> Image.Image:
    """What the pipeline makes."""
    pipeline: Any = DiffusionPipeline.from_pretrained(family, torch_dtype=torch.float32)
    pipeline.scheduler = make_scheduler(scheduler, dict(pipeline.scheduler.config))
    image: Image.Image = pipeline(
        PROMPT, negative_prompt=NEGATIVE, generator=torch.Generator().manual_seed(SEED), guidance_scale=SCALE,
        num_inference_steps=STEPS, width=SIDE, height=SIDE,
    ).images[0]  # fmt: skip
    return image


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_images_are_the_pipelines(name: str, tmp_path: Path, emoji_family: Path) -> None:
    family = (Path(FOLDER) if FOLDER else tmp_path) / name
    if not family.is_dir():
        save_family(name, family, emoji_family / "tokenizer")
    assert check_family(family).errors == []
    expected = reference(family, "ddim")
    gc.collect()
    settings = {"SFUMATO_ENCODER_ENGINE": "torch", "SFUMATO_DECODER_ENGINE": "torch"}
    settings |= {"SFUMATO_DENOISER_ENGINE": "torch", "SFUMATO_GATEWAY_STEP_TIMEOUT_SECONDS": "1800"}
    with (
        local_stack(family, log_dir=tmp_path, settings=settings) as stack,
        Client(stack.target, timeout=900) as client,
    ):
        result = client.generate(
            PROMPT, negative_prompt=NEGATIVE, seed=SEED, guidance_scale=SCALE, num_inference_steps=STEPS,
            width=SIDE, height=SIDE, scheduler="ddim",
        )  # fmt: skip
    assert largest_difference(result.images[0].data, expected) <= TOLERANCE


@pytest.mark.parametrize("activation", ["", "-quickgelu"])
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "RN50"])
def test_embeddings_are_open_clips(name: str, activation: str, tmp_path: Path) -> None:
    reference = saved(f"{name}{activation}", tmp_path / "clip")
    source = clip_source(tmp_path, "")
    assert source is not None
    check_embeddings(reference, f"{name}{activation}", JointEncoder(source, torch.device("cpu")))
