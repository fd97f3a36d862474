"""StyleCLIP's part of the edit report, on faces by their seeds."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sfumato.editor.method import Inputs
from sfumato.editor.pixels import to_tensor
from sfumato.editor.registry import METHODS
from tests.bench.edit_cases import EMOJI, Report, share

# Smileys that the family's CLIP and the judge have words for.
FACES = ("an angry face", "a crying face", "a laughing face", "a cool face", "a face with heart eyes")
# The vocabulary's words for faces other than the grinning one, by the alphabet of their nouns: on the first
# four faces the direction's settings were chosen (direction_tuning.py), on the other three they are scored.
TUNING = (
    "an angry face", "a furious face", "a red face", "a crying face", "a sad face", "a face with heart eyes",
    "a lovestruck face", "a face with sunglasses", "a cool face",
)  # fmt: skip
UNTUNED = (
    "a laughing face", "tears of joy", "a screaming face", "a scared face", "a sleeping face", "a tired face",
)  # fmt: skip
WEIGHTS = {"lambda_l2": (0.0, 0.01, 0.1, 1.0), "lambda_id": (0.0, 0.1, 1.0, 10.0)}
NUM_WEIGHTED = 3


@torch.no_grad()
def identity_similarity(report: Report, a: Image.Image, b: Image.Image) -> float:
    """Cosine of the identity network's features."""
    features = report.models.identity(torch.cat([to_tensor(a), to_tensor(b)]) * 2 - 1)
    return float(features[0] @ features[1])


def styleclip(report: Report) -> dict[str, Any]:
    """(a) optimisation, its weights; (b) mapper; (c) direction, both signs; on faces by their seeds."""
    pairs, identities = [], []
    texts = [FACES[k % len(FACES)] for k in range(len(report.cases))]
    for k, text in enumerate(tqdm(texts, "styleclip-optimization")):
        result = report.edit("styleclip-optimization", str(k), prompt=text, seed=k)
        pairs.append((result["start"], result["image"], text))
        identities.append(identity_similarity(report, result["start"], result["image"]))
    gains = report.gains(pairs)
    figures = {
        "raised": share([gain > 0 for gain in gains]),
        "gain": round(float(np.mean(gains)), 4),
        "identity": round(float(np.mean(identities)), 4),
        **{name: weighted(report, name) for name in WEIGHTS},
    }
    return figures | mapper(report, texts, gains) | direction(report)


def weighted(report: Report, name: str) -> list[float]:
    """Latent distance over lambda_l2, or identity similarity over lambda_id."""
    method, row = METHODS["styleclip-optimization"], []
    for value in WEIGHTS[name]:
        values = []
        for k in range(min(NUM_WEIGHTED, len(report.cases))):
            options = {**EMOJI[method.name], "prompt": FACES[k], "seed": k, name: value}
            other = {"lambda_l2": {"lambda_id": 0.0}, "lambda_id": {"lambda_l2": 0.0}}[name]
            state: Any = method.start(method.options(**(options | other)), Inputs(), report.models)
            for _ in method.run(state):
                pass
            result = state.result()
            moved = float((state.latents - state.start).detach().norm())
            similar = identity_similarity(report, result["start"], result["image"])
            values.append(moved if name == "lambda_l2" else similar)
        row.append(round(float(np.mean(values)), 4))
    return row


def mapper(report: Report, texts: list[str], gains: list[float]) -> dict[str, Any]:
    """Gain of the mapper as a share of (a)'s."""
    mapped, shares = [], []
    for text in FACES:
        key = text.replace(" ", "-")
        weights = report.edit("styleclip-mapper-training", key, prompt=text)["mapper"]
        for k in [k for k, other in enumerate(texts) if other == text]:
            inputs = Inputs(earlier=weights)
            result = report.edit("styleclip-mapper", f"{key}-{k}", inputs, mapper=key, seed=k)
            mapped += report.gains([(result["start"], result["image"], text)])
            shares.append(gains[k])
    return {"mapper_share_of_gain": round(float(np.mean(mapped) / np.mean(shares)), 4)}


def direction(report: Report) -> dict[str, Any]:
    """Gains of the direction and of (a) on texts apart from the tuning, and whether alpha's sign reverses."""
    optimised, directed, reversed_signs = [], [], []
    texts = [UNTUNED[k % len(UNTUNED)] for k in range(len(report.cases))]
    for k, text in enumerate(tqdm(texts, "styleclip-direction")):
        key, alpha = f"{text.replace(' ', '-')}-{k}", EMOJI["styleclip-direction"]["alpha"]
        slow = report.edit("styleclip-optimization", key, prompt=text, seed=k)
        up, down = (
            report.edit("styleclip-direction", f"{key}-{sign:g}", prompt=text, seed=k, alpha=sign * alpha)
            for sign in (1.0, -1.0)
        )
        optimised += report.gains([(slow["start"], slow["image"], text)])
        directed += report.gains([(up["start"], up["image"], text)])
        reversed_signs.append(report.gains([(down["image"], up["image"], text)])[0] > 0)
    return {
        "direction_share_of_gain": round(float(np.mean(directed) / np.mean(optimised)), 4),
        "direction_gain_by_text": by_text(texts, directed),
        "optimization_gain_by_text": by_text(texts, optimised),
        "direction_reversible": share(reversed_signs),
    }


def by_text(texts: list[str], gains: list[float]) -> dict[str, float]:
    """Mean gain of each text."""
    return {
        text: round(
            float(np.mean([gain for other, gain in zip(texts, gains, strict=True) if other == text])), 4
        )
        for text in dict.fromkeys(texts)
    }
