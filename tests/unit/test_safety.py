"""Which images the safety check withholds, and which lists it does not take."""

import json
from typing import Any

import pytest
import torch

from sfumato.gateway.safety import Concept, SafetyCheck, Withheld, read_concepts

GUNS = {"name": "guns", "text": "a photo of a gun", "threshold": 0.5}


class Encoder:
    """Texts lie along the axes; an image is its own direction in the plane, by its bytes."""

    def __init__(self) -> None:
        self.num_texts = 0

    async def embed_texts(self, texts: list[str]) -> torch.Tensor:
        self.num_texts += len(texts)
        return torch.eye(3)[: len(texts)]

    async def embed(self, images: list[bytes]) -> torch.Tensor:
        return torch.tensor([json.loads(image) for image in images])


def concepts_of(*thresholds: float) -> tuple[Concept, ...]:
    return tuple(
        Concept(name=f"concept-{index}", text="x", threshold=threshold)
        for index, threshold in enumerate(thresholds)
    )


async def test_an_image_above_a_threshold_is_withheld_and_the_nearest_concept_named() -> None:
    encoder = Encoder()
    check = SafetyCheck(concepts_of(0.5, 0.7), encoder)
    await check.check(b"[0.5, 0.7, 0.5]")  # at the thresholds
    for image, name in ((b"[0.6, 0.0, 0.8]", "concept-0"), (b"[0.6, 0.9, 0.0]", "concept-1")):
        with pytest.raises(Withheld, match=name) as error:
            await check.check(image)
        assert (error.value.code, error.value.reason) == ("FAILED_PRECONDITION", "IMAGE_WITHHELD")
        assert error.value.value == name
    assert encoder.num_texts == 2  # embedded once


def test_a_list_is_read() -> None:
    assert read_concepts(json.dumps({"concepts": [GUNS]}).encode()) == (Concept(**GUNS),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"concepts": []}, "concepts"),
        ({"concepts": [{**GUNS, "threshold": 1.5}]}, r"concepts\.0\.threshold"),
        ({"concepts": [{**GUNS, "name": "two words"}]}, r"concepts\.0\.name"),
        ({"concepts": [{**GUNS, "text": ""}]}, r"concepts\.0\.text"),
        ({"concepts": [{**GUNS, "treshold": 0.2}]}, r"concepts\.0\.treshold"),
        ([], "file"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line_that_says_where(wrong: Any, where: str) -> None:
    with pytest.raises(ValueError, match=f"^no valid list of concepts: {where}: ") as error:
        read_concepts(json.dumps(wrong).encode())
    assert "\n" not in str(error.value)
