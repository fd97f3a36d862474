"""Published checkpoints as parts of a family: each function writes one part, whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sfumato.common.arcface import ArcFace
from sfumato.common.checked_weights import WeightsError
from sfumato.common.family_parts import check_part
from sfumato.importer.noised_clip import glide_clip
from sfumato.importer.pickles import Tensors, read_module, read_tensors
from sfumato.importer.stylegan2 import from_nvidia, from_rosinality
from sfumato.importer.vqgan import vqmodel

PICKLE = ".pkl"


def import_vqgan(file: Path, family: Path) -> Path:
    """taming-transformers' VQGAN (.ckpt or .safetensors) to vqgan/, in diffusers' VQModel layout.

    Raises:
        WeightsError: a key is missing, too many, or of another shape.
    """
    config, tensors = vqmodel(read_tensors(file))
    config = {"_class_name": "VQModel", **config}
    return write_part(family, "vqgan", config, tensors, "diffusion_pytorch_model.safetensors")


def import_stylegan2(file: Path, family: Path, name: str) -> Path:
    """A StyleGAN2 generator to stylegan2/NAME/: rosinality's .pt (its g_ema), or NVIDIA's networks.pkl.

    Raises:
        WeightsError: a key is missing, too many, or of another shape.
    """
    if file.suffix == PICKLE:
        config, tensors = from_nvidia(read_module(file, "G_ema"))
    else:
        config, tensors = from_rosinality(read_tensors(file, "g_ema"))
    return write_part(family, f"stylegan2/{name}", config, tensors, "model.safetensors")


def import_identity(file: Path, family: Path) -> Path:
    """ArcFace's IR-SE50 (model_ir_se50.pth) to identity/.

    Raises:
        WeightsError: a key is missing, too many, or of another shape.
    """
    return write_part(family, "identity", dict(ArcFace.config), read_tensors(file), "model.safetensors")


def import_noised_clip(image: Path, text: Path, family: Path) -> Path:
    """GLIDE's noised CLIP (clip_image_enc.pt, clip_text_enc.pt) to clip_noised/.

    Raises:
        WeightsError: a key is missing, too many, or of another shape.
    """
    config, tensors = glide_clip(read_tensors(image), read_tensors(text))
    return write_part(family, "clip_noised", config, tensors, "model.safetensors")


def write_part(family: Path, part: str, config: dict[str, Any], tensors: Tensors, name: str) -> Path:
    """Writes config.json and the weights, which are checked before they take their place."""

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        held = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file({key: t.float() if t.is_floating_point() else t for key, t in held.items()}, folder / name)

    return placed(family, part, write)


def placed(family: Path, part: str, write: Callable[[Path], None]) -> Path:
    """Writes a part beside its place, checks it, and moves it there.

    Raises:
        WeightsError: it does not fit, or there is one already.
    """
    target = family / part
    if target.exists():
        raise WeightsError(f"{target} exists already; remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=family, prefix=".import-") as made:
        write(Path(made) / part)
        try:
            with torch.inference_mode():
                check_part(Path(made), part)
        except WeightsError as error:
            raise WeightsError(error.message.replace(f"{made}/", "")) from error
        shutil.move(Path(made) / part, target)
    return target
