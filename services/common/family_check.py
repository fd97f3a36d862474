"""What a family folder holds, what is wrong with it, and which requests it will serve.

`python -m sfumato.common.family_check FOLDER` prints it as JSON; `sfumato models check` shows it.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sfumato.common  # noqa: F401  (before diffusers, for torchvision)
from sfumato.common.errors import SfumatoError
from sfumato.common.family import family_name, read_json
from sfumato.common.family_parts import check_part, parts_of, pipeline_config
from sfumato.common.noised_clip import CONFIG, check_latents, is_glide
from sfumato.common.recorded import changed

NEEDED = ("unet", "vae", "scheduler")
EDITING = {
    "vqgan-clip": ("clip", "vqgan"),
    "text2live": ("clip",),
    "styleclip-optimization, -mapper, -direction": ("clip", "stylegan2"),
    "deep-image-prior with a prompt": ("clip",),
}


@dataclass
class Part:
    """One part: its size, or what is wrong with it."""

    name: str
    num_parameters: int = 0
    num_bytes: int = 0
    dtypes: list[str] = field(default_factory=list)
    variant: str | None = None
    error: str = ""


@dataclass
class Report:
    """The family as a whole; `errors` is empty where it can be served."""

    family: str
    pipeline: str = ""
    prediction_type: str = ""
    scheduler: str = ""
    parts: list[Part] = field(default_factory=list)
    serves: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)  # files that are not what was fetched


def check_family(family: Path) -> Report:
    """Reads configurations and headers of weights; weights only to compare a fetched family with its record.

    Raises:
        NotFound: there is no such folder.
    """
    report = Report(family_name(family), parts=[_part(family, name) for name in parts_of(family)])
    report.errors = [part.error for part in report.parts if part.error]
    try:
        config = pipeline_config(family)
        report.pipeline = str(config.get("_class_name", ""))
        scheduler = read_json(family, "scheduler", "scheduler_config.json")
        report.scheduler = str(scheduler.get("_class_name", ""))
        report.prediction_type = str(scheduler.get("prediction_type", "epsilon"))
        report.errors += _unserved(family)
        if (family / "clip_noised").is_dir():
            check_latents(family)
    except SfumatoError as error:
        report.errors.append(error.message)
    report.changed = changed(family)
    _say_what_is_served(report, family)
    return report


def _part(family: Path, name: str) -> Part:
    try:
        weights = check_part(family, name)
    except SfumatoError as error:
        return Part(name, error=error.message)
    dtypes = sorted(weights.dtypes)
    return Part(name, weights.num_parameters, weights.num_bytes, dtypes, weights.variant)


def _unserved(family: Path) -> list[str]:
    """What the weights are right for and the services are not."""
    if not (family / "unet" / "config.json").is_file() or not (family / "vae" / "config.json").is_file():
        return []
    unet, vae = (read_json(family, part, "config.json") for part in ("unet", "vae"))
    if unet["in_channels"] != vae["latent_channels"]:
        return [f"{family / 'unet'}: takes {unet['in_channels']} channels, the autoencoder has "
                f"{vae['latent_channels']}; inpainting UNets are not served"]  # fmt: skip
    return []


def _say_what_is_served(report: Report, family: Path) -> None:
    sound = {part.name.split("/")[0] for part in report.parts if not part.error}
    sound |= {name for name in ("tokenizer", "tokenizer_2", "scheduler") if (family / name).is_dir()}
    refiner = (family / "text_encoder_2").is_dir() and not (family / "text_encoder").is_dir()
    needed = (
        *NEEDED,
        *(() if refiner else ("text_encoder", "tokenizer")),
        *(("text_encoder_2", "tokenizer_2") if "XL" in report.pipeline else ()),
    )
    noised = ["clip_noised", *([] if _brings_texts(family) else ["clip"])]
    diffusion = "image-to-image, inpainting, attention maps, prompt-to-prompt"
    diffusion = diffusion if refiner else f"text-to-image, {diffusion}"
    wanted: dict[str, tuple[str, ...]] = {
        diffusion: needed,
        "CLIP guidance": (*needed, "clip"),
        "noised-CLIP guidance": (*needed, *noised),
        **EDITING,
    }
    for request, parts in wanted.items():
        lacking = [part for part in parts if part not in sound]
        if not lacking:
            report.serves.append(request)
        else:
            report.missing[request] = lacking


def _brings_texts(family: Path) -> bool:
    """Whether the noise-aware CLIP compares with texts of its own."""
    file = family / "clip_noised" / CONFIG
    return file.is_file() and is_glide(json.loads(file.read_text()))


def main(arguments: list[str]) -> int:
    """Exit code 0: can be served; 1: cannot; 2: no such folder."""
    try:
        report = check_family(Path(arguments[0]))
    except SfumatoError as error:
        print(error.message, file=sys.stderr)
        return 2
    shown: dict[str, Any] = dataclasses.asdict(report)
    print(json.dumps(shown, indent=2))
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
