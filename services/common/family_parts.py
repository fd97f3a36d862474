"""The parts of a family, and the model that each is: for checks before loading.

The layout is diffusers' (model_index.json, unet/, vae/, text_encoder/, ...), open_clip's for clip/, and this
project's own for clip_noised/, identity/ and stylegan2/NAME/.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sfumato.common.checked_weights import Weights, WeightsError, check_weights
from sfumato.common.errors import NotFound, SfumatoError
from sfumato.common.family import part_of, read_json
from sfumato.common.identity import identity_of
from sfumato.common.noised_clip import noised_clip_of
from sfumato.common.stylegan2 import StyleGAN2

# Of family and part: makes the model.
Builder = Callable[[Path, str], Callable[[], torch.nn.Module]]

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
)


def pipeline_config(family: Path) -> dict[str, Any]:
    """The family's model_index.json; empty where it has none.

    Raises:
        WeightsError: it names a pipeline that is not served.
    """
    file = family / "model_index.json"
    if not file.is_file():
        return {}
    config: dict[str, Any] = json.loads(file.read_text())
    name = config.get("_class_name")
    if name not in PIPELINES:
        raise WeightsError(f"{file}: {name} is not served here; {', '.join(PIPELINES)} are")
    return config


def check_part(family: Path, part: str, kind: str = "") -> Weights:
    """The weights of a part ("unet", "stylegan2/faces"), which fit its configuration.

    Args:
        family, part: where it lies.
        kind: the part that it is to be, where its folder has another name.

    Raises:
        NotFound: the part or its configuration is missing.
        WeightsError: the weights do not fit; names file and key.
    """
    folder = part_of(family, part)
    try:
        return check_weights(folder, _BUILDERS[kind or part.split("/")[0]](family, part))
    except SfumatoError:
        raise
    except Exception as error:  # whatever a library makes of a damaged configuration
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{folder}: the configuration makes no model: {reason}"[:300]) from error


def _diffusers(name: str) -> Builder:
    def builder(family: Path, part: str) -> Callable[[], torch.nn.Module]:
        import diffusers

        config = read_json(family, part, "config.json")
        named = config.get("_class_name", name)
        if named != name:
            raise WeightsError(f"{family / part}/config.json: {named} is not served here; {name} is")
        return lambda: getattr(diffusers, name).from_config(config)

    return builder


def _text_encoder(name: str) -> Builder:
    def builder(family: Path, part: str) -> Callable[[], torch.nn.Module]:
        import transformers

        read_json(family, part, "config.json")
        config = transformers.CLIPTextConfig.from_pretrained(family / part)
        return lambda: getattr(transformers, name)(config)

    return builder


def _open_clip(family: Path, part: str) -> Callable[[], torch.nn.Module]:
    import open_clip

    read_json(family, part, "open_clip_config.json")
    source = f"local-dir:{family / part}"
    return lambda: open_clip.create_model(source, load_weights=False, device="meta")


def _own(make: Callable[..., torch.nn.Module]) -> Builder:
    def builder(family: Path, part: str) -> Callable[[], torch.nn.Module]:
        config = read_json(family, part, "config.json")
        return lambda: make(**config)

    return builder


_BUILDERS: dict[str, Builder] = {
    "unet": _diffusers("UNet2DConditionModel"),
    "vae": _diffusers("AutoencoderKL"),
    "vqgan": _diffusers("VQModel"),
    "text_encoder": _text_encoder("CLIPTextModel"),
    "text_encoder_2": _text_encoder("CLIPTextModelWithProjection"),
    "clip": _open_clip,
    "clip_noised": _own(lambda **config: noised_clip_of(config)),
    "identity": _own(lambda **config: identity_of(config)),
    "stylegan2": _own(StyleGAN2),
}


def parts_of(family: Path) -> list[str]:
    """The parts that the folder has, of those known here.

    Raises:
        NotFound: there is no such folder.
    """
    if not family.is_dir():
        raise NotFound(f"{family} is not a folder; looked for {family.resolve()}")
    names = [name for name in _BUILDERS if name != "stylegan2" and (family / name).is_dir()]
    generators = sorted((family / "stylegan2").glob("*/")) if (family / "stylegan2").is_dir() else []
    return [*names, *(f"stylegan2/{folder.name}" for folder in generators)]
