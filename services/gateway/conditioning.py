"""What the denoiser is told of a trajectory: the encoded texts, and what the UNet takes beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sfumato.gateway.attention_maps import Word
from sfumato.gateway.parameters import FamilyInfo, Parameters

SCORE, NULL_SCORE = 6.0, 2.5  # aesthetic scores that diffusers gives SDXL's refiner with prompt and null text


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as the encoder gives them back.

    Attributes:
        prompt_embeds: float32 [texts, tokens, width].
        num_truncated: tokens cut from each text.
        words: of each text, with their tokens.
        pooled_prompt_embeds: float32 [texts, pooled_size], or None where the family has none.
    """

    prompt_embeds: torch.Tensor
    num_truncated: list[int]
    words: list[list[Word]]
    pooled_prompt_embeds: torch.Tensor | None = None

    def select(self, rows: Sequence[int]) -> "EncodedTexts":
        """Some of the texts, in the order asked for."""
        pooled = self.pooled_prompt_embeds
        return EncodedTexts(
            self.prompt_embeds[rows],
            [self.num_truncated[row] for row in rows],
            [self.words[row] for row in rows],
            None if pooled is None else pooled[rows],
        )


@dataclass(frozen=True)
class Conditioning:
    """Rows of conditioning, sent once for each trajectory.

    Attributes:
        prompt_embeds: float32 [rows, tokens, width].
        pooled_prompt_embeds: float32 [rows, pooled_size], or None.
        time_ids: float32 [rows, 6], of SDXL's refiner [rows, 5], or None.
        guidance_scale: for UNets that take it as an input; 0 for all others.
        adapter: name of a LoRA adapter, or none.
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    guidance_scale: float = 0.0
    adapter: str = ""


def conditioning_of(encoded: EncodedTexts, p: Parameters, family: FamilyInfo) -> Conditioning:
    """A row for each encoded text.

    SDXL's sizes (Podell et al. 2023, section 2.2) say, as its pipeline does unasked: an image of this size
    that was neither scaled nor cropped. Its refiner hears of an aesthetic score in place of the second size.
    """
    time_ids = None
    if family.num_time_ids:
        rows = range(len(encoded.prompt_embeds))
        sizes = [p.height, p.width, 0, 0]
        # Of several rows the first is the null text's.
        scores = [NULL_SCORE if row == 0 and len(rows) > 1 else SCORE for row in rows]
        is_refiner = family.num_time_ids == len(sizes) + 1
        ids = [[*sizes, score] if is_refiner else [*sizes, p.height, p.width] for score in scores]
        time_ids = torch.tensor(ids, dtype=torch.float32)
    scale = (p.guidance_scale if p.guidance.classifier_free else 1.0) if family.guidance_embedded else 0.0
    return Conditioning(encoded.prompt_embeds, encoded.pooled_prompt_embeds, time_ids, scale, p.adapter)
