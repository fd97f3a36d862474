"""The judge's figures against cases whose answer is known."""

import numpy as np
import pytest

from tests.bench.judge import clip_score, diversity, frechet_distance, r_precision


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_r_precision_counts_the_images_whose_own_text_is_nearest() -> None:
    texts = np.eye(4)
    images = np.eye(4)[[0, 1, 3, 2]]
    assert r_precision(images, texts) == 0.5
    assert clip_score(images, texts) == 0.5


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0.0, 1.0, (200_000, 3))
    second = rng.normal(0.5, 2.0, (200_000, 3))
    # |m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances
    assert frechet_distance(first, second) == pytest.approx(3 * 0.25 + 3 * 1.0, rel=0.02)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6)


def test_diversity_falls_when_the_seeds_of_a_prompt_agree() -> None:
    rng = np.random.default_rng(1)
    varied = [unit(rng.normal(size=(5, 8))) for _ in range(4)]
    alike = [unit(rng.normal(size=(1, 8)) + 0.1 * rng.normal(size=(5, 8))) for _ in range(4)]
    assert diversity(alike) < 0.5 * diversity(varied)
