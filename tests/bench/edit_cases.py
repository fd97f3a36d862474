"""Held-out scenes and edits for the edit report; what was edited is kept on disk."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.editor.method import Inputs, Method, Models
from sfumato.editor.models import FamilyModels
from sfumato.editor.registry import METHODS
from sfumato.trainer import artwork
from sfumato.trainer.scenes import draw_scene, render
from sfumato.trainer.vocabulary import EMOJI as VOCABULARY
from tests.bench.judge import Judge

SEED = 50_000
# Where 64-pixel images and a small CLIP need less than the papers' defaults; the rest are the defaults.
EMOJI: dict[str, dict[str, Any]] = {
    "vqgan-clip": {"num_iterations": 100, "num_cutouts": 8},
    "deep-image-prior": {"num_iterations": 300, "channels": 64},
    "text2live": {"num_iterations": 150, "num_views": 4, "channels": 64, "templates": "emoji"},
    "styleclip-optimization": {"num_iterations": 100, "num_cutouts": 8},
    "styleclip-mapper-training": {"num_iterations": 400, "batch_size": 4},
    "styleclip-direction": {"templates": "emoji", "beta": 0.3, "alpha": 4.0},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A scene of one emoji, and another emoji to put in its place."""

    image: Image.Image
    mask: np.ndarray  # bool [64, 64], where the object is
    source: str  # "a cat on a red background"
    target: str
    region: str  # "cat"
    layer: str  # what takes its place, "fox"


def cases(data: Path, count: int) -> list[Case]:
    """The first `count` of a fixed list; scenes are (emoji, background) pairs that training never showed."""
    art, rng, found = artwork.load(data), np.random.default_rng(SEED), []
    for _ in range(count):
        scene = draw_scene(rng, held_out=True)
        box = scene.placed[0]
        glyph = Image.fromarray(art[scene.style, box.emoji]).resize((box.side, box.side))
        mask = Image.new("L", (64, 64))
        mask.paste(glyph.getchannel("A"), (box.left, box.top))
        other = int(rng.choice([k for k in range(len(VOCABULARY)) if k != box.emoji]))
        nouns = [VOCABULARY[k].noun for k in (box.emoji, other)]
        texts = [f"a {noun} on a {scene.colour} background" for noun in nouns]
        image = Image.fromarray(render(scene, art))
        found.append(Case(image, np.asarray(mask) > 127, texts[0], texts[1], nouns[0], nouns[1]))
    return found


def make(
    path: Path, method: Method, models: Models, options: dict[str, Any], inputs: Inputs | None = None
) -> dict[str, Any]:
    """Runs an edit, or reads what an earlier run left at the path; images and tensors by name."""
    from safetensors.torch import load_file, save_file

    if not (path / "done").exists():
        asked = method.options(**options)
        state = method.start(asked, inputs or Inputs(), models)
        for _ in method.run(state):
            pass
        path.mkdir(parents=True, exist_ok=True)
        for name, value in state.result().items():
            if isinstance(value, Image.Image):
                value.save(path / f"{name}.png")
            else:
                save_file(value, path / f"{name}.safetensors")
        (path / "done").write_text(str(dataclasses.asdict(asked)) + "\n")
    found: dict[str, Any] = {file.stem: Image.open(file).copy() for file in sorted(path.glob("*.png"))}
    return found | {file.stem: load_file(file) for file in path.glob("*.safetensors")}


def share(values: list[bool]) -> float:
    """How many of them are true."""
    return round(float(np.mean(values)), 4)


def change_ratio(case: Case, edited: Image.Image) -> float:
    """Mean absolute change of pixels inside the object over that outside."""
    change = np.abs(np.asarray(edited, float) - np.asarray(case.image, float)).mean(-1)
    return float(change[case.mask].mean() / max(change[~case.mask].mean(), 1e-6))


def psnr(a: Image.Image, b: Image.Image) -> float:
    """In dB, of 8-bit images."""
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@dataclass(frozen=True)
class Report:
    """What all methods' figures need."""

    models: FamilyModels
    judge: Judge
    cases: list[Case]
    ranked: list[str]  # prompts among which R-precision is measured
    out: Path
    most: int  # iterations of an edit, at most

    def edit(self, method: str, key: str, inputs: Inputs | None = None, **options: Any) -> dict[str, Any]:
        """One edit with the emoji family's settings, kept under its key."""
        asked = {**EMOJI.get(method, {}), **options}
        for name in ("num_iterations", "num_inversion_iterations"):
            if name in asked:
                asked[name] = min(self.most, asked[name])
        return make(self.out / method / key, METHODS[method], self.models, asked, inputs)

    def similarity(self, image: Image.Image, text: str) -> float:
        """The judge's cosine."""
        return float(self.judge.of_images([image.convert("RGB")])[0] @ self.judge.of_texts([text])[0])

    def gains(self, pairs: list[tuple[Image.Image, Image.Image, str]]) -> list[float]:
        """How much nearer to its text each (before, after, text) came."""
        return [self.similarity(after, text) - self.similarity(before, text) for before, after, text in pairs]
