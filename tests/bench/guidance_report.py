"""How well, and how variedly, each kind of guidance follows the words: curves over its scale, with figures.

`make guidance-report` makes images of held-out prompts through the services, at the same seeds for every kind
and scale, and has them judged by a CLIP that guided none of them: R-precision and CLIP score (does the image
show its words?), diversity among seeds of one prompt, and the Frechet distance to training scenes. Writes
figures.json and guidance-report.png; goes on where it was stopped.
"""

import argparse
import io
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sfumato.trainer.batches import stream
from sfumato_client import Client
from sfumato_client.stack import local_stack
from tests.bench.judge import Judge, clip_score, diversity, frechet_distance, r_precision

KINDS = ("cfg", "noised-clip", "clip")
SEED, GROUP_PROMPTS, GROUP_SEEDS = 40_000, 8, 5
# One thread a service: with several requests under way, more threads only wait for each other.
THREADS = {f"SFUMATO_{service}_NUM_THREADS": "1" for service in ("ENCODER", "DECODER", "DENOISER")}


@dataclass(frozen=True)
class Setting:
    """A kind of guidance at one scale; none has no scale."""

    kind: str
    scale: float

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.scale:g}"

    def options(self) -> dict[str, Any]:
        """As the client takes them."""
        if self.kind == "cfg":
            return {"guidance": "cfg", "guidance_scale": self.scale}
        if self.kind == "none":
            return {"guidance": "none"}
        return {"guidance": self.kind, "clip_guidance_scale": self.scale}


@dataclass(frozen=True)
class Task:
    """One image: a prompt and a seed."""

    prompt: str
    seed: int


def held_out(data: Path, count: int) -> tuple[list[str], list[Image.Image]]:
    """Captions that differ, of scenes that training never showed, and the scenes."""
    images, captions = next(iter(stream(data, SEED, 3 * count, 0, 1, workers=0, held_out=True)))
    rows = list({text: row for row, text in enumerate(captions)}.values())[:count]
    pixels = images.permute(0, 2, 3, 1).numpy()
    return [captions[row] for row in rows], [Image.fromarray(pixels[row]) for row in rows]


def make(client: Client, setting: Setting, tasks: list[Task], steps: int, folder: Path) -> list[Image.Image]:
    """The images of one setting, from the folder where they are there already."""
    path = folder / f"{setting.name}.npz"
    if not path.exists():

        def one(task: Task) -> np.ndarray:
            options: Any = setting.options()
            result = client.generate(task.prompt, seed=task.seed, num_inference_steps=steps, **options)
            return np.asarray(Image.open(io.BytesIO(result.images[0].data)))

        with ThreadPoolExecutor(4) as pool:
            made = list(tqdm(pool.map(one, tasks), setting.name, len(tasks)))
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, images=np.stack(made))
    return [Image.fromarray(image) for image in np.load(path)["images"]]


def figures_of(
    judge: Judge, images: list[Image.Image], texts: np.ndarray, training: np.ndarray
) -> dict[str, float]:
    """All figures of one setting: the first len(texts) images, one a prompt, then the groups."""
    count = len(texts)
    features = judge.of_images(images)
    groups = features[count:].reshape(GROUP_PROMPTS, GROUP_SEEDS, -1)
    return {
        "r_precision": round(r_precision(features[:count], texts), 4),
        "clip_score": round(clip_score(features[:count], texts), 4),
        "diversity": round(diversity(list(groups)), 4),
        "frechet_distance": round(frechet_distance(features[:count], training), 4),
    }


def plot(figures: dict[str, dict[str, Any]], real: dict[str, float], path: Path) -> None:
    """Each figure over the scale, a curve a kind; R-precision against diversity last."""
    import matplotlib.pyplot as plt

    names = ("r_precision", "clip_score", "diversity", "frechet_distance")
    chart, axes = plt.subplots(1, 5, figsize=(22, 4))
    for kind in KINDS:
        rows = sorted((row for row in figures.values() if row["kind"] == kind), key=lambda row: row["scale"])
        for axis, name in zip(axes, names, strict=False):
            axis.plot([row["scale"] for row in rows], [row[name] for row in rows], "o-", label=kind)
        axes[4].plot(
            [row["diversity"] for row in rows], [row["r_precision"] for row in rows], "o-", label=kind
        )
    for axis, name in zip(axes, names, strict=False):
        axis.axhline(figures["none-0"][name], color="grey", linestyle=":", label="none")
        if name in real:
            axis.axhline(real[name], color="black", linestyle="--", label="real scenes")
        axis.set(title=name, xlabel="guidance scale", xscale="log")
    axes[4].set(title="fidelity against diversity", xlabel="diversity", ylabel="r_precision")
    axes[0].legend()
    chart.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=80)


def main() -> None:
    """Parses the options, makes what is missing, judges, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--judge", type=Path, default=Path("deploy/models/judge"))
    parser.add_argument("--data", type=Path, default=Path("out/train/data"), help="artwork, from `npm pack`")
    parser.add_argument("--out", type=Path, default=Path("out/guidance-report"))
    parser.add_argument("--plot", type=Path, default=Path("docs/guidance-report.png"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    for kind, scales in (("cfg", "1,2,3,5,10"), ("noised-clip", "10,30,100,300"), ("clip", "30,100,300")):
        parser.add_argument(f"--{kind}", default=scales, help="scales, by commas")
    arguments = parser.parse_args()
    settings = [Setting("none", 0.0)]
    for kind in KINDS:
        scales = getattr(arguments, kind.replace("-", "_")).split(",")
        settings += [Setting(kind, float(scale)) for scale in scales if scale]
    prompts, scenes = held_out(arguments.data, arguments.prompts)
    tasks = [Task(prompt, SEED + index) for index, prompt in enumerate(prompts)]
    tasks += [Task(prompt, seed) for prompt in prompts[:GROUP_PROMPTS] for seed in range(GROUP_SEEDS)]
    judge = Judge(arguments.judge)
    texts = judge.of_texts(prompts)
    images, _ = next(iter(stream(arguments.data, SEED + 1, 4000, 0, 1, workers=0)))
    training = judge.of_images([Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()])
    seen = judge.of_images(scenes)
    real = {
        "r_precision": round(r_precision(seen, texts), 4),
        "clip_score": round(clip_score(seen, texts), 4),
        "frechet_distance": round(frechet_distance(seen, training), 4),
    }
    figures: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory() as logs,
        local_stack(arguments.family, log_dir=Path(logs), settings=THREADS) as stack,
        Client(stack.target) as client,
    ):
        for setting in settings:
            made = make(client, setting, tasks, arguments.steps, arguments.out)
            row = figures_of(judge, made, texts, training)
            figures[setting.name] = {"kind": setting.kind, "scale": setting.scale, **row}
            print(setting.name, json.dumps(row), flush=True)
    text = {"prompts": len(prompts), "steps": arguments.steps, "real_scenes": real, "settings": figures}
    (arguments.out / "figures.json").write_text(json.dumps(text, indent=2) + "\n")
    plot(figures, real, arguments.plot)
    print(json.dumps(real), f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
