"""`python -m sfumato.trainer STAGE`: trains the emoji family as a batch job.

Each stage goes on from its checkpoint, so a job that is killed is simply started again.
"""

import subprocess
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import SafetensorError

from sfumato.trainer import artwork
from sfumato.trainer.autoencoder import train_autoencoder
from sfumato.trainer.checkpoint import average_of
from sfumato.trainer.clip import train_clip
from sfumato.trainer.editing import EDITING_RECIPES, export_editing, train_editing
from sfumato.trainer.evaluate import evaluate
from sfumato.trainer.export import export, text_encoder_from
from sfumato.trainer.loop import Schedule
from sfumato.trainer.noised_clip import train_noised_clip
from sfumato.trainer.restore import restore
from sfumato.trainer.tokens import tokenizer_of, train_tokenizer, vocabulary_size
from sfumato.trainer.unet import encode_latents, train_unet

# What each does; `all` runs them in this order.
STAGES = {
    "data": "fetches the emoji artwork with `npm pack`",
    "autoencoder": "images to latents and back",
    "clip": "the text encoder's start, and the family's CLIP",
    "judge": "another CLIP, which only measures",
    "latents": "scenes encoded once, for the next two",
    "unet": "the denoiser, and the text encoder with it",
    "noised-clip": "the noise-aware CLIP",
    "vqgan": "the VQGAN of vqgan-clip",
    "identity": "tells faces apart, for StyleCLIP",
    "stylegan2-faces": "a generator, for StyleCLIP",
    "stylegan2-animals": "another",
    "export": "checkpoints to the family's folder",
    "evaluate": "figures.json and contact_sheet.png of the family",
}
EXTRA = {
    "all": "every stage above",
    "continue": "makes the checkpoints that are missing, from the family",
    "export-editing": "exports vqgan, identity and the generators alone",
}
NEEDED = {  # checkpoints of other stages
    "latents": ("autoencoder",),
    "unet": ("clip", "latents"),
    "noised-clip": ("clip", "latents"),
    "export": ("autoencoder", "clip", "latents", "unet"),
}
# Steps, learning rate, batch: what a stage gets when nothing else is asked.
RECIPES = {
    "autoencoder": (40_000, 3e-3, 16),
    "clip": (3_000, 1.5e-3, 96),
    "judge": (3_000, 1.5e-3, 96),
    "unet": (20_000, 1.5e-3, 96),
    "noised-clip": (6_000, 1.5e-3, 128),
    **EDITING_RECIPES,
}
NUM_SCENES = 60_000

HELP = """Train, export and measure the emoji family.

A stage goes on from its checkpoint, and does no more where it is done.

\b
{stages}

Examples:

  python -m sfumato.trainer all --checkpoints out/train

  python -m sfumato.trainer continue       # then latents, and any model's stage

  torchrun --nproc-per-node 2 -m sfumato.trainer unet --threads 1 --max-seconds 3600
""".format(stages="\n".join(f"{name:18} {what}" for name, what in {**STAGES, **EXTRA}.items()))

app = typer.Typer(add_completion=False)


@app.command(help=HELP)
def main(
    stage: Annotated[str, typer.Argument(help="One of the above.")],
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints and data.")] = Path("out/train"),
    family: Annotated[Path, typer.Option(help="Folder to export to, or to continue from.")] = Path(
        "deploy/models/emoji"
    ),
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of the stage, those done included; 0: the recipe's.")
    ] = 0,
    max_seconds: Annotated[float, typer.Option(min=1, help="Time for the stage, over all its runs.")] = float(
        "inf"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed; the judge's is one more than CLIP's.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: one per core.")] = 0,
) -> None:
    """As HELP says."""
    if stage not in (known := {**STAGES, **EXTRA}):
        raise typer.BadParameter(f"must be one of {', '.join(known)}, but is {stage}")
    if threads:
        torch.set_num_threads(threads)
    for name in STAGES if stage == "all" else (stage,):
        try:
            run(name, checkpoints, family, steps, max_seconds, seed)
        except (OSError, SafetensorError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{name}: {error}") from error


def run(name: str, checkpoints: Path, family: Path, steps: int, max_seconds: float, seed: int) -> None:
    """One stage.

    Raises:
        OSError, SafetensorError, CalledProcessError: what it needs is not there, or there is no room.
    """
    for needed in NEEDED.get(name, ()):
        if not (path := checkpoints / f"{needed}.safetensors").exists():
            raise FileNotFoundError(f"needs {path}: run the stage {needed} first")
    data, tokenizer = checkpoints / "data", checkpoints / "tokenizer"
    judge = family.parent / "judge"
    if name == "data":
        artwork.load(data)
    if name == "continue":
        print(
            f"checkpoints from {family}: {', '.join(restore(family, judge, checkpoints)) or 'none missing'}"
        )
    if name in RECIPES:
        if not tokenizer.is_dir():
            train_tokenizer(tokenizer)
        recipe_steps, rate, batch = RECIPES[name]
        schedule = Schedule(steps or recipe_steps, rate, max_seconds=max_seconds)
        path = checkpoints / f"{name}.safetensors"
        if name in EDITING_RECIPES:
            train_editing(name, checkpoints, schedule, seed, batch)
        elif name == "autoencoder":
            train_autoencoder(data, path, schedule, seed, batch)
        elif name == "unet":
            _train_unet(checkpoints, schedule, seed, batch)
        elif name == "noised-clip":
            latents, clip = checkpoints / "latents.safetensors", checkpoints / "clip.safetensors"
            train_noised_clip(latents, clip, vocabulary_size(tokenizer), path, schedule, seed + 7, batch)
        else:
            train_clip(data, tokenizer, path, schedule, seed + (1 if name == "clip" else 2), batch)
    elif name == "latents" and not (path := checkpoints / "latents.safetensors").exists():
        encode_latents(data, checkpoints / "autoencoder.safetensors", tokenizer, path, NUM_SCENES, seed + 5)
    elif name == "export":
        export(checkpoints, family, judge)
        export_editing(checkpoints, family)
    elif name == "export-editing":
        print(f"exported to {family}: {', '.join(export_editing(checkpoints, family)) or 'nothing trained'}")
    elif name == "evaluate":
        print(evaluate(data, family, judge))


def _train_unet(checkpoints: Path, schedule: Schedule, seed: int, batch: int) -> None:
    tokenizer = checkpoints / "tokenizer"
    text = text_encoder_from(average_of(checkpoints / "clip.safetensors"), vocabulary_size(tokenizer))
    train_unet(
        checkpoints / "latents.safetensors", text, tokenizer_of(tokenizer), checkpoints / "unet.safetensors",
        schedule, seed, batch,
    )  # fmt: skip


if __name__ == "__main__":
    app()
