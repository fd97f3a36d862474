"""`sfumato edit-prompt`: changes an image by changing its prompt."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sfumato_client.calls import TIMEOUT_SECONDS
from sfumato_client.client import Client
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
    readable_errors,
)
from sfumato_client.files import check_writable
from sfumato_client.messages import say, stderr, warn
from sfumato_client.prompt_edits import KINDS, EditPromptOptions, EditPromptResult
from sfumato_client.results import reached


def edit_prompt(
    prompt: Annotated[str, typer.Argument(help="What the source image shows.")],
    to: Annotated[str, typer.Option("--to", help="What the edited image shows.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Edited image to write: .png, .jpg or .webp.")
    ],
    image: Annotated[
        Path | None,
        typer.Option(
            help="Image to edit, which PROMPT describes. Default: one is made.", exists=True, dir_okay=False
        ),
    ] = None,
    source_output: Annotated[
        Path | None, typer.Option(help="File for the source, or for the reconstruction of --image.")
    ] = None,
    reweight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD=C",
            help="Scale a word of --to: 1 changes nothing, 2 strengthens, -2 weakens. Repeat.",
        ),
    ] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD", help="Change the image only where this word is, in either prompt. Repeat."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="replace: swapped words; refine: added ones. Default: by their number.")
    ] = None,
    cross_replace: Annotated[float, typer.Option(help="Share of steps that keep cross-attention.")] = 0.8,
    self_replace: Annotated[float, typer.Option(help="Share of steps that keep self-attention.")] = 0.4,
    seed: Annotated[int | None, typer.Option(help="Seed of the source. Default: random.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="How strictly the words are followed.")] = 5.0,
    request_id: RequestId = "",
    on_disconnect: OnDisconnect = "cancel",
    keep_seconds: KeepSeconds = None,
    priority: Priority = 0,
    target: Target = "",
    family: FamilyDir = None,
    model: Model = "",
    timeout: Timeout = TIMEOUT_SECONDS,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Change an image by words alone (prompt-to-prompt): what the words share stays where it is.

    Examples:

      sfumato edit-prompt "a cat on a blue background" --to "a dog on a blue background" -o dog.png --seed 7

      sfumato edit-prompt "a cat" --to "a large cat" -o large.png --reweight large=1.8 --blend cat

      sfumato edit-prompt "a cat on a blue background" --to "a fox on a blue background" -o fox.png
      --image cat.png
    """
    for path in (output, source_output):
        if path is not None and path.suffix.lower() != output.suffix.lower():
            raise typer.BadParameter(f"must end in {output.suffix}, as -o does", param_hint="--source-output")
    if output.suffix.lower() not in SUFFIXES:
        message = f"must end in one of {', '.join(SUFFIXES)}, but is {output.name}"
        raise typer.BadParameter(message, param_hint="-o")
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"must be one of {', '.join(KINDS)}, but is {kind}", param_hint="--kind")
    options: EditPromptOptions = {
        "request_id": request_id,
        "on_disconnect": checked_on_disconnect(on_disconnect, request_id),
        "keep_seconds": keep_seconds,
        "priority": priority,
        "allow_partial": partial,
        "family": model,
        "image": image,
        "weights": dict(map(_weight, reweight or [])),
        "blend_words": blend or [],
        "kind": kind,
        "cross_replace": cross_replace,
        "self_replace": self_replace,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "image_format": SUFFIXES[output.suffix.lower()],
    }
    with readable_errors():
        for path in filter(None, (output, source_output)):
            check_writable(path)
    with readable_errors(), gateway(target, family, timeout) as client:
        result = _with_progress(client, prompt, to, options)
        files = [result.images[1].save(output)]
        if source_output is not None:
            files.append(result.images[0].save(source_output))
    _report(result, files, as_json)


def _weight(text: str) -> tuple[str, float]:
    word, equals, scale = text.rpartition("=")
    try:
        if not (word and equals):
            raise ValueError
        return word, float(scale)
    except ValueError:
        message = f"must be WORD=C with a number C, such as red=1.5, but is {text}"
        raise typer.BadParameter(message, param_hint="--reweight") from None


def _with_progress(
    client: Client, prompt: str, target_prompt: str, options: EditPromptOptions
) -> EditPromptResult:
    result = EditPromptResult()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("waiting", total=None)
        for event in client.edit_prompt_events(prompt, target_prompt, **options):
            result.add(event)
            if event.HasField("accepted"):
                progress.update(task, total=event.accepted.num_steps, description="editing")
            elif event.HasField("step"):
                progress.advance(task)
    return result


def _report(result: EditPromptResult, files: list[Path], as_json: bool) -> None:
    for warning in result.warnings:
        warn(warning)
    kind = KINDS[result.parameters.kind - 1]
    seed = result.parameters.seed if result.parameters.HasField("seed") else None
    if as_json:
        answer = {"files": [str(file) for file in files], "kind": kind, "seed": seed,
                  "partial": result.images[1].partial, "steps": result.images[1].step,
                  "request_id": result.request_id, "warnings": result.warnings}  # fmt: skip
        print(json.dumps(answer))
        return
    made = "" if seed is None else f", source of seed {seed}"
    say(f"{files[0]}: {kind}{made}{reached(result.images[1])}")
