"""One-file Stable Diffusion checkpoints to a family folder, by diffusers' own converter."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from sfumato.common.checked_weights import WeightsError, read_header
from sfumato.common.family_check import check_family

# A key that only that architecture has.
SDXL_KEY = "conditioner.embedders.1.model.ln_final.weight"
UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def import_single_file(file: Path, family: Path, config: str) -> Path:
    """Writes a family folder.

    Args:
        file: .safetensors, with the original names ("model.diffusion_model...").
        family: the folder to write; must not exist.
        config: a family of the same architecture, a folder or a hub id, for configurations and tokenizer.

    Raises:
        WeightsError: it is no such file, or what comes out of it cannot be served.
    """
    import diffusers

    names = read_header(file)
    if UNET_KEY not in names:
        raise WeightsError(f"{file}: {UNET_KEY} is missing; it is no Stable Diffusion checkpoint")
    if family.exists():
        raise WeightsError(f"{family} exists already; remove it first")
    kind = "StableDiffusionXLPipeline" if SDXL_KEY in names else "StableDiffusionPipeline"
    more: dict[str, Any] = {} if SDXL_KEY in names else {"safety_checker": None}
    family.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=family.parent, prefix=".import-") as made:
        pipeline: Any = getattr(diffusers, kind).from_single_file(
            str(file), config=config, torch_dtype=torch.float32, **more
        )
        pipeline.save_pretrained(Path(made) / family.name, safe_serialization=True)
        errors = check_family(Path(made) / family.name).errors
        if errors:
            raise WeightsError(errors[0].replace(f"{made}/", ""))
        (Path(made) / family.name).rename(family)
    return family
