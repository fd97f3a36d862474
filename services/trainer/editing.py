"""The stages for the editing methods, and their export: VQGAN, StyleGAN2s, identity network."""

from pathlib import Path

from sfumato.trainer.generator_export import export_generator
from sfumato.trainer.identity import export_identity, train_identity
from sfumato.trainer.loop import Schedule
from sfumato.trainer.stylegan2 import train_stylegan2
from sfumato.trainer.vqgan import export_vqgan, train_vqgan

# Steps, learning rate, batch of one process.
EDITING_RECIPES = {
    "vqgan": (60_000, 3e-3, 8),
    "identity": (2_000, 3e-3, 64),
    "stylegan2-faces": (30_000, 8e-3, 16),
    "stylegan2-animals": (20_000, 8e-3, 16),
}


def train_editing(name: str, checkpoints: Path, schedule: Schedule, seed: int, batch: int) -> None:
    """One of the stages above."""
    data, path = checkpoints / "data", checkpoints / f"{name}.safetensors"
    if name == "vqgan":
        train_vqgan(data, path, schedule, seed + 11, batch)
    elif name == "identity":
        train_identity(data, path, schedule, seed + 13, batch)
    else:
        domain = name.removeprefix("stylegan2-")
        train_stylegan2(data, domain, path, schedule, seed + 17, batch)


def export_editing(checkpoints: Path, family: Path) -> list[str]:
    """Writes what has a checkpoint to the family: vqgan/, identity/, stylegan2/; returns which."""
    done = []
    for name in EDITING_RECIPES:
        path = checkpoints / f"{name}.safetensors"
        if not path.exists():
            continue
        if name == "vqgan":
            export_vqgan(path, family)
        elif name == "identity":
            export_identity(path, family)
        else:
            export_generator(path, family, name.removeprefix("stylegan2-"))
        done.append(name)
    return done
