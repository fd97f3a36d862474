"""`sfumato compare`: kinds of guidance side by side."""

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sfumato_client.calls import TIMEOUT_SECONDS
from sfumato_client.client import Client
from sfumato_client.commands.request_life import (
    KeepSeconds,
    OnDisconnect,
    Priority,
    RequestId,
    checked_on_disconnect,
)
from sfumato_client.comparison import ComparisonResult, SettingOptions, draw_comparison
from sfumato_client.console import (
    SUFFIXES,
    AsJson,
    FamilyDir,
    Model,
    Target,
    gateway,
    readable_errors,
)
from sfumato_client.files import check_writable
from sfumato_client.guidance import GUIDANCE_KINDS, kind_name
from sfumato_client.messages import say, stderr, warn
from sfumato_client.requests import SCHEDULERS, GenerateOptions, family_name
from sfumato_client.results import GeneratedImage

KINDS = ("none", "clip", "noised-clip", "cfg")


def compare(
    prompt: Annotated[str, typer.Argument(help="What the images show.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Sheet to write: .png, .jpg or .webp.")],
    seeds: Annotated[int, typer.Option(help="Images of each kind, at seeds that follow each other.")] = 4,
    seed: Annotated[int | None, typer.Option(help="The first seed. Default: random.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"A kind of guidance, several times. Any of {', '.join(GUIDANCE_KINDS)}."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 30,
    scheduler: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.")] = "dpmpp_2m",
    guidance_scale: Annotated[float, typer.Option(help="Scale of the kinds with cfg.")] = 5.0,
    clip_guidance_scale: Annotated[
        float | None, typer.Option(help="Scale of the kinds with clip. Default: the service's.")
    ] = None,
    request_id: RequestId = "",
    on_disconnect: OnDisconnect = "cancel",
    keep_seconds: KeepSeconds = None,
    priority: Priority = 0,
    target: Target = "",
    family: FamilyDir = None,
    model: Model = "",
    timeout: Annotated[float, typer.Option(help="Deadline in seconds.")] = TIMEOUT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Draw kinds of guidance side by side: a row for each, the same seeds in every row.

    Without --kind: none, clip, noised-clip and cfg, as far as the family has them.

    Examples:

      sfumato compare "a cat on a blue background" -o sheet.png --seeds 6

      sfumato compare "a fox" -o sheet.png --kind cfg --kind cfg+clip --clip-guidance-scale 100 --json
    """
    _check(output, scheduler, kind or [])
    options: GenerateOptions = {
        "request_id": request_id,
        "on_disconnect": checked_on_disconnect(on_disconnect, request_id),
        "keep_seconds": keep_seconds,
        "priority": priority,
        "family": model,
        "num_inference_steps": steps, "scheduler": scheduler, "seed": seed, "num_images": seeds,
    }  # fmt: skip
    with readable_errors():
        check_writable(output)
    with readable_errors(), gateway(target, family, timeout) as client:
        kinds = kind or _served(client, model)
        settings = {name: _setting(name, guidance_scale, clip_guidance_scale) for name in kinds}
        result = _with_progress(client, prompt, settings, options)
        buffer = io.BytesIO()
        sheet = draw_comparison(prompt, result)
        sheet.save(buffer, SUFFIXES[output.suffix.lower()])
        GeneratedImage(0, 0, buffer.getvalue(), sheet.width, sheet.height).save(output)
    if as_json:
        print(json.dumps(_as_dict(prompt, output, result)))
        return
    first = next(iter(result.generations.values()))
    say(f"{output}: {', '.join(settings)}; seeds from {first.images[0].seed}")


def _check(output: Path, scheduler: str, kinds: list[str]) -> None:
    """Usage errors, before anything is started."""
    if output.suffix.lower() not in SUFFIXES:
        message = f"must end in one of {', '.join(SUFFIXES)}, but is {output.name}"
        raise typer.BadParameter(message, param_hint="-o")
    for option, value, known in (
        ("scheduler", scheduler, SCHEDULERS),
        *(("kind", kind, GUIDANCE_KINDS) for kind in kinds),
    ):
        if value not in known:
            message = f"must be one of {', '.join(known)}, but is {value}"
            raise typer.BadParameter(message, param_hint=f"--{option}")


def _served(client: Client, model: str) -> list[str]:
    """The kinds of the comparison that the family has; says which it lacks."""
    families = client.list_families()
    family = next((one for one in families if one.name == family_name(model)), families[0])
    served = {kind_name(value) for value in family.guidance_kinds}
    lacking = [name for name in KINDS if name not in served]
    if lacking:
        warn(f"this family has no {', '.join(lacking)}")
    return [name for name in KINDS if name in served]


def _setting(kind: str, guidance_scale: float, clip_guidance_scale: float | None) -> SettingOptions:
    setting: SettingOptions = {"guidance": kind}
    if kind.startswith("cfg"):
        setting["guidance_scale"] = guidance_scale
    if "clip" in kind:
        setting["clip_guidance_scale"] = clip_guidance_scale
    return setting


def _with_progress(
    client: Client, prompt: str, settings: dict[str, SettingOptions], options: GenerateOptions
) -> ComparisonResult:
    """Runs the comparison under a progress bar over the steps of all images."""
    result = ComparisonResult()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("waiting", total=None)
        for event in client.compare_events(prompt, settings, **options):
            result.add(event)
            if event.event.HasField("accepted"):
                accepted = event.event.accepted
                total = accepted.num_steps * accepted.parameters.num_images * len(settings)
                progress.update(task, total=total, description=event.label)
            elif event.event.HasField("step"):
                progress.advance(task)
    return result


def _as_dict(prompt: str, output: Path, result: ComparisonResult) -> dict[str, Any]:
    first = next(iter(result.generations.values()))
    options: Any = {"preserving_proto_field_name": True}
    return {
        "prompt": prompt,
        "file": str(output),
        "seeds": [image.seed for image in first.images],
        "settings": [
            {
                "label": label,
                "guidance": MessageToDict(row.parameters.guidance, **options),
                "guidance_scale": row.parameters.guidance_scale
                if row.parameters.HasField("guidance_scale")
                else None,
                "total_seconds": row.timings.total_seconds,
            }
            for label, row in result.generations.items()
        ],
    }
