"""Withholds images that are near a concept which the operator listed, to the family's CLIP.

As Stable Diffusion's checker does (Rando et al. 2022, section 2): the cosine similarity exceeds the concept's
threshold. The list is the operator's; without one, no image is looked at.
"""

from typing import Protocol

import structlog
import torch
from prometheus_client import Counter
from pydantic import Field

from sfumato.common.errors import FailedPrecondition
from sfumato.gateway.json_file import FileModel, read_json

log = structlog.get_logger()

WITHHELD = Counter(
    "sfumato_gateway_withheld_images_total", "Images and previews withheld by the safety check.", ["concept"]
)


class Withheld(FailedPrecondition):
    """An image was made and is not given out."""

    reason = "IMAGE_WITHHELD"


class Concept(FileModel):
    """What images shall not be near."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,64}$", description="Named to the client, and in metrics.")
    text: str = Field(min_length=1, max_length=1000, description="To CLIP, such as 'a photo of a gun'.")
    threshold: float = Field(ge=-1, le=1, description="Cosine similarity above which an image is withheld.")


class _File(FileModel):
    concepts: tuple[Concept, ...] = Field(min_length=1, max_length=64)


def read_concepts(text: bytes) -> tuple[Concept, ...]:
    """Of a file {"concepts": [{"name": "weapons", "text": "a photo of a gun", "threshold": 0.27}]}.

    Raises:
        ValueError: it is no such file; one line says where.
    """
    return read_json(_File, text, "list of concepts").concepts


class Embedder(Protocol):
    """The encoder."""

    async def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors [texts, embedding_size]."""

    async def embed(self, images: list[bytes]) -> torch.Tensor:
        """Unit vectors [images, embedding_size] of encoded images."""


class SafetyCheck:
    """Looks at every image, previews too, before it leaves."""

    def __init__(self, concepts: tuple[Concept, ...], encoder: Embedder) -> None:
        self._concepts, self._encoder = concepts, encoder
        self._texts: torch.Tensor | None = None

    async def check(self, image: bytes) -> None:
        """
        Raises:
            Withheld: the encoded image is nearer to a concept than its threshold; the nearest is named.
        """
        if self._texts is None:
            self._texts = await self._encoder.embed_texts([concept.text for concept in self._concepts])
        similarities = (self._texts @ (await self._encoder.embed([image]))[0]).tolist()
        excess = [s - concept.threshold for s, concept in zip(similarities, self._concepts, strict=True)]
        worst = max(range(len(excess)), key=excess.__getitem__)
        if excess[worst] > 0:
            concept = self._concepts[worst].name
            WITHHELD.labels(concept).inc()
            log.info("image withheld", concept=concept, similarity=round(similarities[worst], 4))
            message = f"an image was withheld: it is near {concept}, which this service does not show; "
            raise Withheld(
                f"{message}another prompt or seed may help", field="prompt",
                limit="no image near a listed concept", value=concept,
            )  # fmt: skip
