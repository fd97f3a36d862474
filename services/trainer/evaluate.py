"""Stage 5: figures on held-out scenes, and a contact sheet to look at.

The judge is a CLIP trained with another seed, which neither the sampler nor its text encoder has seen.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from sfumato.common.noised_clip import load_noised_clip
from sfumato.trainer.autoencoder import psnr_of
from sfumato.trainer.batches import stream, to_pixels
from sfumato.trainer.clip import make_clip, recall
from sfumato.trainer.noised_clip import recall_by_timestep
from sfumato.trainer.tokens import tokenizer_of, vocabulary_size

GUIDANCE_SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
SHEET_PROMPTS = (
    "a cat on a blue background, noto style",
    "a dog on a yellow background, twemoji style",
    "a fluent emoji of a rocket on a black background",
    "an apple on a white background",
    "a grinning face on a purple background, twemoji style",
    "a pizza on a green background, noto style",
    "a fox left of a star on a white background",
    "a red heart on a pink background",
)
SEED = 20_000


def evaluate(
    data: Path, family: Path, judge_folder: Path, num_prompts: int = 64, num_inference_steps: int = 20
) -> dict[str, Any]:
    """All figures; also written to figures.json and contact_sheet.png in the family."""
    tokenizer = family / "tokenizer"
    images, captions = next(iter(stream(data, SEED, 256, 0, 1, workers=0, held_out=True)))
    tokens = tokenizer_of(tokenizer)(captions)
    vae: Any = AutoencoderKL.from_pretrained(family / "vae", torch_dtype=torch.float32)
    figures: dict[str, Any] = {"autoencoder_psnr_db": round(psnr_of(vae, images), 2)}
    clip = load_clip(family / "clip", tokenizer)
    figures["clip"] = recall(clip, images, tokens)
    if (family / "clip_noised").is_dir():
        noised = load_noised_clip(family / "clip_noised")
        with torch.inference_mode():
            latents = vae.encode(to_pixels(images)).latent_dist.mean * vae.config.scaling_factor
            text_features = clip.encode_text(tokens, normalize=True)
        figures["noised_clip_by_timestep"] = recall_by_timestep(noised, latents, text_features)
    pipeline = load_pipeline(family)
    contact_sheet(pipeline, num_inference_steps).save(family / "contact_sheet.png")
    if judge_folder.is_dir():
        judge = load_clip(judge_folder, tokenizer)
        figures["judge"] = recall(judge, images, tokens)
        figures["judge_r_precision"] = {
            str(scale): r_precision(
                judge, pipeline, captions[:num_prompts], tokens, scale, num_inference_steps
            )
            for scale in GUIDANCE_SCALES
        }
        figures["judge_r_precision_of_real_scenes"] = figures["judge"]["recall@1"]
    figures["num_prompts"], figures["num_inference_steps"] = num_prompts, num_inference_steps
    (family / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def load_clip(folder: Path, tokenizer: Path) -> Any:
    """An exported CLIP, in float32."""
    model = make_clip(vocabulary_size(tokenizer))
    weights = load_file(folder / "open_clip_model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval()


def load_pipeline(family: Path) -> Any:
    """The family in diffusers, with DPM-Solver++ 2M."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(family, torch_dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images_of(pipeline: Any, prompts: list[str], scale: float, steps: int) -> list[Image.Image]:
    """One image per prompt, seeded by its place."""
    generators = [torch.Generator().manual_seed(SEED + index) for index in range(len(prompts))]
    result = pipeline(prompts, guidance_scale=scale, num_inference_steps=steps, generator=generators)
    images: list[Image.Image] = result.images
    return images


def r_precision(
    judge: Any, pipeline: Any, captions: list[str], tokens: torch.Tensor, scale: float, steps: int
) -> float:
    """Share of images whose own caption the judge ranks first among all the tokens' captions."""
    made: list[Image.Image] = []
    for start in range(0, len(captions), 16):
        made += images_of(pipeline, captions[start : start + 16], scale, steps)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in made])).permute(0, 3, 1, 2)
    return round(recall(judge, pixels, tokens)["recall@1"], 4)


def contact_sheet(pipeline: Any, steps: int, side: int = 128) -> Image.Image:
    """Prompts down, guidance scales across."""
    left, top = 330, 24
    size = (left + side * len(GUIDANCE_SCALES), top + side * len(SHEET_PROMPTS))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(SHEET_PROMPTS):
        draw.text((6, top + row * side + side // 2), prompt, "black")
    for column, scale in enumerate(GUIDANCE_SCALES):
        draw.text((left + column * side + 6, 6), f"guidance {scale:g}", "black")
        for row, image in enumerate(images_of(pipeline, list(SHEET_PROMPTS), scale, steps)):
            resized = image.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(resized, (left + column * side, top + row * side))
    return sheet
