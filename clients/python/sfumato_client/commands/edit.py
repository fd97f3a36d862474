"""`sfumato edit`: optimisation-based editing, one command per method."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato_client.commands.editing import Run, run_edit
from sfumato_client.console import AsJson, FamilyDir, Target, readable_errors

edit_app = typer.Typer(
    no_args_is_help=True,
    help="Edit or make an image by optimisation, with CLIP as the loss. An edit is a durable job: with a "
    "running `sfumato serve` (--target), it goes on whatever becomes of this command.",
)

Output = Annotated[Path, typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.")]
MaybeImage = Annotated[
    Path | None,
    typer.Option("--image", help="Image to edit. Without: make one.", exists=True, dir_okay=False),
]
Prompts = Annotated[
    list[str],
    typer.Option(
        "--prompt", help='What the image shall show; "text:weight" weighs it, below 0 away. Repeat.'
    ),
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same result. Default: random.")]
Iterations = Annotated[int | None, typer.Option(help="Iterations. Default: the method's own.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other option of the method in editor.proto. Repeat."
    ),
]
Frames = Annotated[Path | None, typer.Option(help="Folder that gets a picture of every few iterations.")]
Film = Annotated[Path | None, typer.Option(help="Film of the optimisation: .mp4 (needs PyAV) or .gif.")]
Every = Annotated[int, typer.Option("--frame-every", min=1, help="Iterations from frame to frame.")]
Detach = Annotated[bool, typer.Option(help="Queue it, print its name, and return. Needs --target.")]
RequestId = Annotated[
    str | None, typer.Option(help="Name of the operation; the same again is the same edit, not another one.")
]
Size = Annotated[int | None, typer.Option(help="Longest side in pixels. Default: the image's.")]


@edit_app.command("vqgan-clip")
def vqgan_clip(
    output: Output,
    prompt: Prompts,
    image: MaybeImage = None,
    image_prompt: Annotated[
        list[Path], typer.Option(help="Image to match. Repeat.", exists=True, dir_okay=False)
    ] = [],  # noqa: B006  (typer reads it, and makes its own list)
    init_weight: Annotated[float | None, typer.Option(help="How strongly it stays near the image.")] = None,
    size: Size = None,
    iterations: Iterations = None,
    seed: Seed = None,
    settings: Settings = [],  # noqa: B006
    frames: Frames = None,
    film: Film = None,
    frame_every: Every = 5,
    detach: Detach = False,
    request_id: RequestId = None,
    target: Target = "",
    family: FamilyDir = None,
    as_json: AsJson = False,
) -> None:
    """VQGAN+CLIP: optimise a VQGAN's latents until CLIP sees the prompt. Without --image, make one.

    Examples:

      sfumato edit vqgan-clip --prompt "a red star" -o star.png --seed 3

      sfumato edit vqgan-clip --image cat.png --prompt "a dog" --prompt "blurry:-0.5" -o d.png --film d.mp4
    """
    options = {
        "prompts": prompt, "image": image, "image_prompts": image_prompt, "init_weight": init_weight,
        "size": size, "num_iterations": iterations, "seed": seed, "request_id": request_id,
    }  # fmt: skip
    run = Run("vqgan-clip", options, output, settings, frames, film, frame_every, detach, as_json)
    _run(run, target, family)


@edit_app.command("deep-image-prior")
def deep_image_prior(
    output: Output,
    prompt: Prompts = [],  # noqa: B006
    image: MaybeImage = None,
    mask: Annotated[
        Path | None, typer.Option(help="White is repainted, black kept.", exists=True, dir_okay=False)
    ] = None,
    size: Size = None,
    iterations: Iterations = None,
    seed: Seed = None,
    settings: Settings = [],  # noqa: B006
    frames: Frames = None,
    film: Film = None,
    frame_every: Every = 5,
    detach: Detach = False,
    request_id: RequestId = None,
    target: Target = "",
    family: FamilyDir = None,
    as_json: AsJson = False,
) -> None:
    """Deep image prior: an untrained network restores the image, or, with prompts, edits or makes one.

    Examples:

      sfumato edit deep-image-prior --image noisy.png -o clean.png --iterations 1000

      sfumato edit deep-image-prior --image torn.png --mask hole.png -o whole.png --iterations 3000

      sfumato edit deep-image-prior --prompt "a smiling face" -o face.png --frames film/
    """
    options = {
        "prompts": prompt, "image": image, "mask": mask, "size": size, "num_iterations": iterations,
        "seed": seed, "request_id": request_id,
    }  # fmt: skip
    run = Run("deep-image-prior", options, output, settings, frames, film, frame_every, detach, as_json)
    _run(run, target, family)


@edit_app.command("styleclip")
def styleclip(
    output: Output,
    prompt: Annotated[str | None, typer.Option(help="What the result shows.")] = None,
    image: MaybeImage = None,
    variant: Annotated[
        str, typer.Option(help="optimization, mapper-training, mapper, or direction.")
    ] = "optimization",
    generator: Annotated[
        str | None, typer.Option(help="Generator of the family: a folder of its stylegan2/. Default: faces.")
    ] = None,
    neutral_prompt: Annotated[
        str | None,
        typer.Option(help='direction: what the image shows: "face". Default: the mean of the generator.'),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="direction: strength, -10 to 10.")] = None,
    beta: Annotated[float | None, typer.Option(help="direction: least relevance of a channel.")] = None,
    mapper: Annotated[str | None, typer.Option(help="mapper: its training, operations/{id}.")] = None,
    lambda_l2: Annotated[float | None, typer.Option(help="How strongly the latent stays.")] = None,
    lambda_id: Annotated[float | None, typer.Option(help="How strongly the identity stays.")] = None,
    iterations: Iterations = None,
    seed: Seed = None,
    settings: Settings = [],  # noqa: B006
    frames: Frames = None,
    film: Film = None,
    frame_every: Every = 5,
    detach: Detach = False,
    request_id: RequestId = None,
    target: Target = "",
    family: FamilyDir = None,
    as_json: AsJson = False,
) -> None:
    """StyleCLIP: move the latent of a StyleGAN2 until CLIP sees the prompt.

    Examples:

      sfumato edit styleclip --image face.png --prompt "an angry face" -o angry.png

      sfumato edit styleclip --variant direction --image face.png --prompt "angry face" \\
        --alpha 4 -o angry.png
    """
    options = {
        "prompt": prompt, "image": image, "generator": generator, "neutral_prompt": neutral_prompt,
        "alpha": alpha, "beta": beta,
        "mapper": mapper, "lambda_l2": lambda_l2, "lambda_id": lambda_id, "num_iterations": iterations,
        "seed": seed, "request_id": request_id,
    }  # fmt: skip
    method = f"styleclip-{variant}"
    _run(Run(method, options, output, settings, frames, film, frame_every, detach, as_json), target, family)


def _run(run: Run, target: str, family: Path | None) -> None:
    with readable_errors():
        run_edit(run, target, family)
