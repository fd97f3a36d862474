"""What the judge, a CLIP that guides nothing, says of images: fidelity, diversity, distance to real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from scipy import linalg

Features = np.ndarray  # float64 [n, d], unit rows


class Judge:
    """A CLIP in open_clip's local-dir layout."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "open_clip_config.json").is_file():
            raise FileNotFoundError(f"no judge in {folder}: `python -m sfumato.trainer judge` trains one")
        source = f"local-dir:{folder}"
        model, preprocess = open_clip.create_model_from_pretrained(source, weights_only=True)
        self._model: Any = model.float().eval()
        self._preprocess: Any = preprocess
        self._tokenizer: Any = open_clip.get_tokenizer(source)

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> Features:
        """Unit features of texts, 64 at a time."""
        parts = [list(texts[start : start + 64]) for start in range(0, len(texts), 64)]
        features = [self._model.encode_text(self._tokenizer(part), normalize=True) for part in parts]
        return torch.cat(features).double().numpy()

    @torch.inference_mode()
    def of_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features of images, 64 at a time."""
        features = []
        for start in range(0, len(images), 64):
            pixels = torch.stack([self._preprocess(image) for image in images[start : start + 64]])
            features.append(self._model.encode_image(pixels, normalize=True))
        return torch.cat(features).double().numpy()


def r_precision(images: Features, texts: Features) -> float:
    """Share of images whose own text, the one of the same row, is nearest of all texts."""
    return float(((images @ texts.T).argmax(1) == np.arange(len(images))).mean())


def clip_score(images: Features, texts: Features) -> float:
    """Mean cosine of each image and its own text."""
    return float((images * texts).sum(1).mean())


def diversity(groups: Sequence[Features]) -> float:
    """Mean over groups (one prompt, several seeds) of the mean distance between two of a group."""
    distances = []
    for features in groups:
        first, second = np.triu_indices(len(features), 1)
        distances.append(np.linalg.norm(features[first] - features[second], axis=1).mean())
    return float(np.mean(distances))


def frechet_distance(first: Features, second: Features) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017), on the judge's features."""
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    shift = first.mean(0) - second.mean(0)
    return float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))
