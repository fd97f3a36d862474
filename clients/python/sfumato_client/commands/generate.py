"""`sfumato generate`: images from words."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from sfumato_protos.v1 import gateway_pb2

from sfumato_client.calls import TIMEOUT_SECONDS
from sfumato_client.commands.request_life import (
    KeepSeconds,
    OnDisconnect,
    Partial,
    Priority,
    RequestId,
    Timeout,
    checked_on_disconnect,
)
from sfumato_client.console import (
    SUFFIXES,
    AsJson,
    FamilyDir,
    Model,
    Target,
    gateway,
    progress_of,
    readable_errors,
)
from sfumato_client.files import check_writable, write_file
from sfumato_client.guidance import CLIP_PATHS, GUIDANCE_KINDS
from sfumato_client.manifest import manifest_of, write_manifest
from sfumato_client.messages import say, warn
from sfumato_client.requests import (
    PREVIEW_KINDS,
    SCHEDULERS,
    GenerateOptions,
    build_request,
)
from sfumato_client.results import GenerateResult, reached


def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.")],
    negative_prompt: Annotated[str, typer.Option(help="What it must not show.")] = "",
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 30,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How strictly the words are followed; 1: unguided. For cfg. Default: 5."),
    ] = None,
    scheduler: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.")] = "dpmpp_2m",
    seed: Annotated[int | None, typer.Option(help="Same seed, same image. Default: random.")] = None,
    num_images: Annotated[int, typer.Option(help="How many; image i has seed + i.")] = 1,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: the family's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels. Default: the family's.")] = None,
    adapter: Annotated[str, typer.Option(help="LoRA adapter; `sfumato models` lists the family's.")] = "",
    image: Annotated[
        Path | None, typer.Option(help="Image to start from.", exists=True, dir_okay=False)
    ] = None,
    strength: Annotated[float | None, typer.Option(help="How far to depart from it, up to 1.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White is repainted, black kept.", exists=True, dir_okay=False)
    ] = None,
    guidance: Annotated[str, typer.Option(help=f"One of {', '.join(GUIDANCE_KINDS)}.")] = "cfg",
    guidance_rescale: Annotated[
        float | None, typer.Option(help="For cfg: sets contrast back, 0 to 1; 0.7 is typical.")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="FROM TO", help="Guide between these shares of the steps, 0 to 1."),
    ] = None,
    clip_guidance_scale: Annotated[
        float | None, typer.Option(help="For clip and noised-clip. Default: the service's.")
    ] = None,
    prompt_weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT:WEIGHT", help="For clip: a further text; a negative weight pushes away."),
    ] = None,
    image_prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="For clip: an image to look like, several times."),
    ] = None,
    num_cutouts: Annotated[int | None, typer.Option(help="For clip: crops that CLIP sees.")] = None,
    cut_power: Annotated[float | None, typer.Option(help="For clip: larger, smaller crops.")] = None,
    tv_scale: Annotated[float | None, typer.Option(help="For clip: smoothness of the image.")] = None,
    range_scale: Annotated[
        float | None, typer.Option(help="For clip: keeps pixels within their range.")
    ] = None,
    gradient_clamp: Annotated[
        float | None, typer.Option(help="For clip: largest magnitude of a step's gradient; 0: any.")
    ] = None,
    clip_path: Annotated[
        str | None, typer.Option(help=f"What CLIP looks at: {', '.join(CLIP_PATHS)}.")
    ] = None,
    request_id: RequestId = "",
    on_disconnect: OnDisconnect = "cancel",
    keep_seconds: KeepSeconds = None,
    manifest: Annotated[
        Path | None, typer.Option(help="File for what `sfumato replay` needs to run it again and compare.")
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(help="Folder that gets previews, named IMAGE-STEP: 0-0001.png.")
    ] = None,
    frame_every: Annotated[int, typer.Option(min=1, help="Steps from preview to preview.")] = 1,
    preview_kind: Annotated[
        str, typer.Option(help="projected: quick, about the image; decoded: as the image itself.")
    ] = PREVIEW_KINDS[0],
    target: Target = "",
    family: FamilyDir = None,
    model: Model = "",
    timeout: Timeout = TIMEOUT_SECONDS,
    partial: Partial = False,
    priority: Priority = 0,
    as_json: AsJson = False,
) -> None:
    """Make images from words.

    Examples:

      sfumato generate "a cat on a blue background" -o cat.png

      sfumato generate "a dog left of a star" -o dogs.png --num-images 4 --seed 7 --guidance-scale 5

      sfumato generate "a fox" -o fox.png --steps 200 --deadline 5 --partial

      sfumato generate "a fox" -o fox.png --frames fox/

      sfumato generate "a fox" -o fox.png --image cat.png --strength 0.6

      sfumato generate "a fox" -o fox.png --adapter watercolour

      sfumato generate "a cat" -o cat.png --guidance cfg+clip --prompt-weight "a blurry photo:-0.5"
    """
    if output.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(
            f"must end in one of {', '.join(SUFFIXES)}, but is {output.name}", param_hint="-o"
        )
    for option, value, known in (
        ("scheduler", scheduler, SCHEDULERS),
        ("guidance", guidance, GUIDANCE_KINDS),
        ("preview-kind", preview_kind, PREVIEW_KINDS),
        ("clip-path", clip_path or CLIP_PATHS[0], CLIP_PATHS),
    ):
        if value not in known:
            message = f"must be one of {', '.join(known)}, but is {value}"
            raise typer.BadParameter(message, param_hint=f"--{option}")
    options: GenerateOptions = {
        "request_id": request_id,
        "on_disconnect": checked_on_disconnect(on_disconnect, request_id),
        "keep_seconds": keep_seconds,
        "priority": priority,
        "family": model,
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "adapter": adapter,
        "seed": seed,
        "num_images": num_images,
        "width": width,
        "height": height,
        "image": image,
        "mask": mask,
        "strength": strength,
        "image_format": SUFFIXES[output.suffix.lower()],
        "guidance": guidance,
        "guidance_rescale": guidance_rescale,
        "guidance_interval": guidance_interval,
        "clip_guidance_scale": clip_guidance_scale,
        "num_cutouts": num_cutouts,
        "cut_power": cut_power,
        "tv_scale": tv_scale,
        "range_scale": range_scale,
        "gradient_clamp": gradient_clamp,
        "clip_path": clip_path,
        "allow_partial": partial,
        "preview_interval_steps": frame_every if frames else 0,
        "preview_kind": preview_kind,
    }
    options.update(_prompts(prompt, prompt_weight or []))
    options.update(_image_prompts(image_prompt or []))
    paths = _paths(output, num_images)
    with readable_errors():
        for path in (*paths, *filter(None, [manifest]), *([frames / "0"] if frames else [])):
            check_writable(path)
    with readable_errors(), gateway(target, family, timeout) as client:
        request = build_request(prompt, options)
        events = client.events_of(request)
        result = progress_of(_with_frames(events, frames, output.suffix) if frames else events)
        files = [image.save(paths[image.index]) for image in result.images]
        if manifest is not None:
            write_manifest(manifest, manifest_of(result, request))
    for warning in result.warnings:
        warn(warning)
    if as_json:
        print(json.dumps(_as_dict(result, files)))
    else:
        for file, made in zip(files, result.images, strict=True):
            say(f"{file}: {made.width}x{made.height}, seed {made.seed}{reached(made)}")


def _with_frames(
    events: Iterable[gateway_pb2.GenerateResponse], folder: Path, suffix: str
) -> Iterator[gateway_pb2.GenerateResponse]:
    """The events; each preview is written as IMAGE-STEP."""
    for event in events:
        if event.step.preview:
            write_file(folder / f"{event.step.image_index}-{event.step.step:04d}{suffix}", event.step.preview)
        yield event


def _paths(output: Path, count: int) -> list[Path]:
    """One file per image: the name given, or -0, -1, ... before the suffix."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def _as_dict(result: GenerateResult, files: list[Path]) -> dict[str, Any]:
    options: Any = {"preserving_proto_field_name": True}
    parameters = MessageToDict(result.parameters, **options)
    parameters.pop("seed", None)  # MessageToDict writes 64-bit integers as text
    timings = {field.name: getattr(result.timings, field.name) for field in result.timings.DESCRIPTOR.fields}
    return {
        "request_id": result.request_id,
        "seed": result.parameters.seed,
        "parameters": {**parameters, "seed": result.parameters.seed},
        "files": [str(file) for file in files],
        "seeds": [image.seed for image in result.images],
        "partial": [image.partial for image in result.images],
        "steps": [image.step for image in result.images],
        "timings": timings,
        "warnings": result.warnings,
    }


def _prompts(prompt: str, weighted: list[str]) -> GenerateOptions:
    """The prompt with weight 1, and further texts, each "TEXT:WEIGHT"."""
    if not weighted:
        return {}
    texts, weights = [prompt], [1.0]
    for item in weighted:
        text, _, weight = item.rpartition(":")
        try:
            weights.append(float(weight))
        except ValueError:
            message = f"must be TEXT:WEIGHT, such as 'a hat:-0.5', but is {item}"
            raise typer.BadParameter(message, param_hint="--prompt-weight") from None
        texts.append(text)
    return {"clip_prompts": texts, "clip_prompt_weights": weights}


def _image_prompts(items: list[str]) -> GenerateOptions:
    """Image files, each with its weight behind a colon, or 1."""
    if not items:
        return {}
    files: list[str] = []
    weights = []
    for item in items:
        file, _, weight = item.rpartition(":")
        try:
            weights.append(float(weight) if file else 1.0)
        except ValueError:  # the colon is part of the name
            file = ""
            weights.append(1.0)
        files.append(file or item)
        if not Path(files[-1]).is_file():
            raise typer.BadParameter(f"no such file: {files[-1]}", param_hint="--image-prompt")
    return {"image_prompts": files, "image_prompt_weights": weights}
