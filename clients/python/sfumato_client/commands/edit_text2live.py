"""`sfumato edit text2live`: an edit layer for an image, or for a video by its atlas."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato_client.atlases import QUICK_TEXT2LIVE
from sfumato_client.commands.atlas import AtlasName, MaskFile, Quick, atlas_of, taken_apart
from sfumato_client.commands.edit import Detach, Every, Film, Frames, Iterations, RequestId, Seed, Settings
from sfumato_client.commands.editing import Run, check_run, finish_edit, run_edit
from sfumato_client.console import AsJson, FamilyDir, Target, gateway, readable_errors


def text2live(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write: .png, .jpg, .webp; with --video .mp4, .webm, .gif."
        ),
    ],
    prompt: Annotated[str, typer.Option(help='What the result shows: "a cake made of ice".')],
    image: Annotated[Path | None, typer.Option(help="Image to edit.", exists=True, dir_okay=False)] = None,
    video: Annotated[
        Path | None, typer.Option(help="Video to edit: .mp4, .webm, .gif.", exists=True, dir_okay=False)
    ] = None,
    layer: Annotated[str, typer.Option(help="With --video: foreground or background.")] = "foreground",
    atlas: AtlasName = None,
    mask: MaskFile = None,
    quick: Quick = False,
    screen_prompt: Annotated[
        str | None, typer.Option(help='What the edit layer alone shows: "ice". Default: the prompt.')
    ] = None,
    region_prompt: Annotated[str | None, typer.Option(help='What is changed: "cake".')] = None,
    source_prompt: Annotated[str | None, typer.Option(help='What it shows now: "a cake".')] = None,
    iterations: Iterations = None,
    seed: Seed = None,
    settings: Settings = [],  # noqa: B006  (typer reads it, and makes its own list)
    frames: Frames = None,
    film: Film = None,
    frame_every: Every = 5,
    detach: Detach = False,
    request_id: RequestId = None,
    target: Target = "",
    family: FamilyDir = None,
    as_json: AsJson = False,
) -> None:
    """Text2LIVE: paint an edit layer over one object of an image or of a video. Writes the layer beside it.

    A video is first taken apart into atlases, once: later edits of the same video use them again.

    Examples:

      sfumato edit text2live --image cake.png --prompt "a cake made of ice" --region-prompt cake -o ice.png

      sfumato edit text2live --video car.mp4 --prompt "a rusty car" --layer foreground --quick -o rusty.mp4
    """
    options: dict[str, Any] = {
        "prompt": prompt, "screen_prompt": screen_prompt, "region_prompt": region_prompt,
        "source_prompt": source_prompt, "num_iterations": iterations, "seed": seed, "request_id": request_id,
    }  # fmt: skip
    with readable_errors():
        if (image is None) == (video is None and atlas is None):
            raise ValueError("give --image, or --video (or --atlas, of a video that was taken apart)")
        method = "text2live" if image is not None else "text2live-video"
        options |= {"image": image} if image is not None else {"layer": layer}
        given = {name: value for name, value in options.items() if value is not None}
        options = {**QUICK_TEXT2LIVE, **given} if quick and image is None else options
        run = Run(method, options, output, settings, frames, film, frame_every, detach, as_json)
        if image is not None:
            run_edit(run, target, family)
            return
        check_run(run, target)
        with gateway(target, family, editor=True, keep=True) as client:
            found = (
                atlas_of(atlas)
                if atlas is not None
                else taken_apart(client, video, mask, quick, bool(target))
            )
            options["decomposition"] = found
            finish_edit(client, run, bool(target))
