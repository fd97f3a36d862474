"""The settings of StyleCLIP's global direction for the emoji family, by the judge on the tuning texts.

Every setting of the grid edits the same faces (seeds that the edit report does not use); the report then
scores the best one on other texts (tests/bench/edit_styleclip.py). Run from the repository; minutes:

    python -m tests.bench.direction_tuning --family deploy/models/emoji --judge deploy/models/judge
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.method import Inputs
from sfumato.editor.models import FamilyModels
from sfumato.editor.pixels import to_image
from sfumato.editor.styleclip_direction import METHOD, Options, State, start
from tests.bench.edit_styleclip import TUNING
from tests.bench.judge import Judge

NEUTRALS = ("", "a face", "a joyful face")  # "": the generator's mean
BETAS = (0.13, 0.2, 0.3)  # the paper's range
ALPHAS = (2.0, 3.0, 4.0, 5.0)
FIRST_SEED = 1000


def relevance(models: FamilyModels) -> torch.Tensor:
    """The generator's table, which all settings share."""
    state: Any = start(Options(prompt=TUNING[0], templates="emoji", beta=0.0), Inputs(), models)
    for _ in METHOD.run(state):
        pass
    table: torch.Tensor = state.kept["relevance"]
    return table


def gain(states: list[State], judge: Judge, options: Options) -> float:
    """Mean over texts and faces of what the judge's similarity to the text rises by."""
    gains = []
    for text in TUNING:
        asked, target = replace(options, prompt=text), judge.of_texts([text])[0]
        for state in states:
            state.options = asked
            state.__dict__.pop("direction", None)
            images = [
                to_image((state.stylegan.synthesis(state.edited_styles(a)) + 1) / 2)
                for a in (0.0, asked.alpha)
            ]
            before, after = judge.of_images(images) @ target
            gains.append(after - before)
    return float(np.mean(gains))


@torch.no_grad()
def main() -> None:
    """Prints a line for each setting, and the best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--judge", type=Path, default=Path("deploy/models/judge"))
    parser.add_argument("--out", type=Path, default=Path("out/edit-report"), help="whose cache is used")
    parser.add_argument("--faces", type=int, default=4)
    arguments = parser.parse_args()
    store = ArtifactStore((arguments.out / "cache").resolve().as_uri())
    models, judge = FamilyModels(arguments.family, torch.device("cpu"), store), Judge(arguments.judge)
    table = relevance(models)
    states = []
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.faces):
        states.append(start(Options(prompt=TUNING[0], seed=seed), Inputs(), models))
        states[-1].kept["relevance"] = table
    found = {}
    for neutral, beta, alpha in product(NEUTRALS, BETAS, ALPHAS):
        options = Options(neutral_prompt=neutral, templates="emoji", beta=beta, alpha=alpha)
        found[neutral, beta, alpha] = gain(states, judge, options)
        print(
            f"{neutral!r:18} beta {beta:<5} alpha {alpha:<4} gain {found[neutral, beta, alpha]:.3f}",
            flush=True,
        )
    print("best:", max(found, key=lambda setting: found[setting]))


if __name__ == "__main__":
    main()
