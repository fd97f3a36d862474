"""What each editing method reaches, by a judge CLIP that none of them uses.

`make edit-report` edits held-out cases with every method in one process, keeps all images in --out (so that
it goes on where it was stopped; remove the folder after a change of settings) and prints one line of figures
per method; all of them go to figures.json. A quick look: --cases 2 --iterations 20.

    python -m tests.bench.edit_report --methods vqgan-clip,styleclip --cases 20
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.clip import Clip
from sfumato.editor.inversion import keys_distance
from sfumato.editor.method import Inputs, Prompt
from sfumato.editor.models import FamilyModels
from sfumato.editor.pixels import to_tensor
from tests.bench.edit_cases import Report, cases, change_ratio, psnr, share
from tests.bench.edit_styleclip import styleclip
from tests.bench.judge import Judge, r_precision

NUM_RANKED = 64
NOISE = 25.0  # standard deviation, of 255


def vqgan_clip(report: Report) -> dict[str, Any]:
    """Generation: R-precision. Editing: judge similarity, and distance to the source."""
    made, pairs, distances = [], [], []
    clip = Clip(report.models.clip, report.models.tokenizer, report.models.device)
    for k, case in enumerate(tqdm(report.cases, "vqgan-clip")):
        prompts = (Prompt(case.target),)
        scratch = report.edit("vqgan-clip", f"{k}-scratch", prompts=prompts, seed=k)["image"]
        edited = report.edit("vqgan-clip", f"{k}-edit", Inputs(case.image), prompts=prompts, seed=k)["image"]
        made.append(scratch)
        pairs.append((case.image, edited, case.target))
        source = to_tensor(case.image)
        distances.append([float(keys_distance(clip, to_tensor(x), source)) for x in (edited, scratch)])
    ranked = np.concatenate([report.judge.of_texts([c.target for c in report.cases]), _others(report)])
    gains = report.gains(pairs)
    return {
        "r_precision": round(r_precision(report.judge.of_images(made), ranked), 4),
        "chance": round(1 / len(ranked), 4),
        "edits_raised": share([gain > 0 for gain in gains]),
        "distance_to_source": round(float(np.mean([d[0] for d in distances])), 4),
        "distance_of_generation": round(float(np.mean([d[1] for d in distances])), 4),
    }


def _others(report: Report) -> np.ndarray:
    """Judge's features of the prompts that are ranked beside the cases' own."""
    own = {case.target for case in report.cases}
    others = [text for text in dict.fromkeys(report.ranked) if text not in own][
        : max(1, NUM_RANKED - len(own))
    ]
    return report.judge.of_texts(others)


def text2live(report: Report) -> dict[str, Any]:
    """Judge similarity; change inside over outside the object, with all losses and without two."""
    pairs, ratios, without = [], [], []
    for k, case in enumerate(tqdm(report.cases, "text2live")):
        texts = {
            "prompt": case.target, "screen_prompt": case.layer, "source_prompt": case.source,
            "region_prompt": case.region,
        }  # fmt: skip
        whole = report.edit("text2live", str(k), Inputs(case.image), **texts, seed=k)["image"]
        off = {"lambda_sparsity": 0.0, "lambda_screen": 0.0}
        bare = report.edit("text2live", f"{k}-without", Inputs(case.image), **texts, **off, seed=k)["image"]
        pairs.append((case.image, whole, case.target))
        ratios.append(change_ratio(case, whole))
        without.append(change_ratio(case, bare))
    return {
        "raised": share([gain > 0 for gain in report.gains(pairs)]),
        "inside_over_outside": round(float(np.median(ratios)), 3),
        "inside_over_outside_without_sparsity_and_screen": round(float(np.median(without)), 3),
    }


def deep_image_prior(report: Report) -> dict[str, Any]:
    """PSNR gained by denoising; judge similarity gained with CLIP."""
    rng, gained, pairs = np.random.default_rng(0), [], []
    for k, case in enumerate(tqdm(report.cases, "deep-image-prior")):
        pixels = np.asarray(case.image, float)
        noisy = Image.fromarray(
            (pixels + NOISE * rng.standard_normal(pixels.shape)).clip(0, 255).astype("uint8")
        )
        clean = report.edit("deep-image-prior", f"{k}-denoised", Inputs(noisy), seed=k)["image"]
        gained.append(psnr(clean, case.image) - psnr(noisy, case.image))
        options = {"prompts": (Prompt(case.target),), "num_iterations": 100, "num_cutouts": 8, "seed": k}
        edited = report.edit("deep-image-prior", f"{k}-clip", Inputs(case.image), **options)["image"]
        pairs.append((case.image, edited, case.target))
    return {
        "denoising_gain_db": [round(float(f(gained)), 2) for f in (np.min, np.mean)],
        "raised": share([gain > 0 for gain in report.gains(pairs)]),
    }


FIGURES: dict[str, Callable[[Report], dict[str, Any]]] = {
    "vqgan-clip": vqgan_clip, "styleclip": styleclip, "text2live": text2live,
    "deep-image-prior": deep_image_prior,
}  # fmt: skip


def main() -> None:
    """Parses the options, edits what is missing, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--judge", type=Path, default=Path("deploy/models/judge"))
    parser.add_argument("--data", type=Path, default=Path("out/train/data"), help="artwork, from `npm pack`")
    parser.add_argument("--out", type=Path, default=Path("out/edit-report"))
    parser.add_argument("--methods", default=",".join(FIGURES), help="by commas")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=100_000, help="of an edit, at most")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one per core")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = ArtifactStore((arguments.out / "cache").resolve().as_uri())
    models = FamilyModels(arguments.family, torch.device("cpu"), store)
    several = cases(arguments.data, arguments.cases + NUM_RANKED)
    ranked = [case.target for case in several[arguments.cases :]]
    judge, held_out = Judge(arguments.judge), several[: arguments.cases]
    report = Report(models, judge, held_out, ranked, arguments.out, arguments.iterations)
    path = arguments.out / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.methods.split(","):
        figures[name] = {"cases": arguments.cases, **FIGURES[name](report)}
        print(name, json.dumps(figures[name]), flush=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
