"""CLIP's attention, keys and relevancy against open_clip's forward and finite differences."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sfumato.common.errors import InvalidArgument
from sfumato.editor.attention import check_vit, look, positions, relevancy, self_similarity
from tests.tiny_models import SIDE, TinyModels, tiny_clip

HEADS, TOKENS = 4, 17
FEW = 5  # tokens of a 16-pixel image


@pytest.fixture
def visual(models: TinyModels) -> Any:
    return models.clip.visual


def pixels(side: int = SIDE) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_features_are_open_clips(visual: Any) -> None:
    seen = look(visual, pixels())
    assert torch.allclose(seen.features, visual(pixels()), atol=1e-5)
    assert len(seen.attention) == len(seen.keys) == 4
    assert torch.allclose(seen.attention[0].sum(-1), torch.ones(1, HEADS, TOKENS), atol=1e-5)


def test_positions_are_interpolated_for_other_sizes(visual: Any) -> None:
    seen = look(visual, pixels(2 * SIDE))
    assert seen.grid == (8, 8)
    assert seen.keys[0].shape == (1, 65, 32)
    # An enlarged image looks alike.
    enlarged = F.interpolate(pixels(), size=2 * SIDE, mode="nearest")
    assert F.cosine_similarity(look(visual, enlarged).features, visual(enlarged[..., ::2, ::2])) > 0.5


def similarity_with(visual: Any, text: torch.Tensor, layer: int, change: torch.Tensor) -> torch.Tensor:
    """Similarity [b] of image and text with `change` [b, heads, t, t] added to a layer's attention."""
    patches = F.conv2d(pixels(16).double(), visual.conv1.weight, stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.view(1, 1, -1), patches], 1) + positions(visual, (2, 2))
    x = visual.ln_pre(x).expand(len(change), -1, -1)
    for index, block in enumerate(visual.transformer.resblocks):
        weights, bias = (
            block.attn.in_proj_weight.view(3, HEADS, 8, 32),
            block.attn.in_proj_bias.view(3, HEADS, 8),
        )
        q, k, v = torch.einsum("btc,phdc->pbhtd", block.ln_1(x), weights) + bias[:, None, :, None]
        attention = torch.einsum("bhsd,bhtd->bhst", q, k).div(8**0.5).softmax(-1)
        attention = attention + change if index == layer else attention
        mixed = torch.einsum("bhst,bhtd->bshd", attention, v).flatten(2)
        x = x + mixed @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        x = x + block.mlp(block.ln_2(x))
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1) @ text


def test_relevancy_is_the_papers_formula_with_gradients_by_finite_differences() -> None:
    visual = tiny_clip().double().visual
    text = F.normalize(
        torch.randn(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=0
    )
    attention = look(visual, pixels(16).double()).attention
    relevance, step = torch.eye(FEW, dtype=torch.float64), 1e-4
    for layer in (2, 3):
        units = torch.eye(HEADS * FEW**2, dtype=torch.float64).view(-1, HEADS, FEW, FEW) * step
        with torch.no_grad():
            ups, downs = (similarity_with(visual, text, layer, sign * units) for sign in (1, -1))
        gradient = ((ups - downs) / (2 * step)).view(HEADS, FEW, FEW)
        relevance = relevance + (gradient * attention[layer][0]).clamp(min=0).mean(0) @ relevance
    patches = relevance[0, 1:].view(1, 1, 2, 2)
    expected = F.interpolate(patches, size=(16, 16), mode="bilinear", align_corners=False)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert torch.allclose(relevancy(visual, pixels(16).double(), text, num_layers=2), expected, atol=1e-4)


def test_self_similarity_is_a_matrix_of_cosines(visual: Any) -> None:
    keys = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    similarity = self_similarity(keys)[0]
    assert torch.allclose(similarity.diagonal(), torch.ones(5), atol=1e-6)
    assert similarity[1, 3] == pytest.approx(
        float(F.cosine_similarity(keys[0, 1], keys[0, 3], dim=0)), abs=1e-6
    )


def test_a_tower_that_is_no_vit_is_refused(visual: Any) -> None:
    check_vit(visual)
    with pytest.raises(InvalidArgument, match="vision transformer"):
        check_vit(SimpleNamespace())
