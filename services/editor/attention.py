"""What CLIP's vision transformer looks at: attention, keys, relevancy, for open_clip's standard ViT.

Positions are interpolated where the image is not of the size that the ViT was trained at (sides are whole
multiples of the patch). Pixels are normalised for CLIP: float [n, 3, h, w].
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from sfumato.common.errors import InvalidArgument


@dataclass(frozen=True)
class Seen:
    """One forward pass, layer by layer; t = 1 + (h / patch) (w / patch) tokens, the class token first."""

    features: torch.Tensor  # [n, d], not normalised
    attention: list[torch.Tensor]  # [n, heads, t, t], rows sum to 1
    keys: list[torch.Tensor]  # [n, t, width]
    grid: tuple[int, int]


def check_vit(visual: Any) -> None:
    """Raises InvalidArgument where the image tower is not a ViT with a class token and plain blocks."""
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    plain = blocks is not None and all(isinstance(b.attn, torch.nn.MultiheadAttention) for b in blocks)
    if not plain or visual.attn_pool is not None or visual.pool_type != "tok":
        limit = "a family whose CLIP has a vision transformer with a class token"
        raise InvalidArgument("family", limit, type(visual).__name__)


def look(visual: Any, pixels: torch.Tensor) -> Seen:
    """open_clip's VisionTransformer with every layer's attention and keys kept in the graph."""
    patches = visual.conv1(pixels)
    grid = (patches.shape[-2], patches.shape[-1])
    tokens = patches.flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(tokens), 1, -1)
    hidden_states = torch.cat([first, tokens], 1) + positions(visual, grid)
    hidden_states = visual.ln_pre(hidden_states)
    attention, keys = [], []
    for block in visual.transformer.resblocks:
        mixed, weights, key = _attend(block.attn, block.ln_1(hidden_states))
        hidden_states = hidden_states + block.ls_1(mixed)
        hidden_states = hidden_states + block.ls_2(block.mlp(block.ln_2(hidden_states)))
        attention.append(weights)
        keys.append(key)
    features = visual.ln_post(hidden_states[:, 0]) @ visual.proj
    return Seen(features, attention, keys, grid)


def positions(visual: Any, grid: tuple[int, int]) -> torch.Tensor:
    """Positional embedding [t, width] for a grid of patches, bicubic between the trained ones."""
    trained: torch.Tensor = visual.positional_embedding
    if grid == tuple(visual.grid_size):
        return trained
    square = trained[1:].T.reshape(1, -1, *visual.grid_size)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([trained[:1], resized[0].flatten(1).T])


def _attend(attn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Multi-head self-attention of x [n, t, width]: the mixed values, softmax(QK^T / sqrt(d)), and K."""
    n, t, width = x.shape
    projected = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    query, key, value = (part.view(n, t, attn.num_heads, -1).transpose(1, 2) for part in projected)
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).reshape(n, t, width)
    return attn.out_proj(mixed), weights, projected[1]


def relevancy(
    visual: Any, pixels: torch.Tensor, text_embed: torch.Tensor, num_layers: int = 10
) -> torch.Tensor:
    """Where the image shows the text: [1, 1, h, w] in [0, 1] (Chefer et al. 2021, equations 5 and 6).

    R starts as the identity; over the last layers R <- R + E_h[max(dA * A, 0)] R with dA the gradient of the
    similarity; the class token's row of R over the patches is the map.

    Args:
        pixels: [1, 3, h, w], normalised.
        text_embed: [d], unit.
    """
    with torch.enable_grad():
        seen = look(visual, pixels.detach().requires_grad_())
        similarity = (F.normalize(seen.features, dim=-1) @ text_embed).sum()
        last = seen.attention[-num_layers:]
        gradients = torch.autograd.grad(similarity, last)
    relevance = torch.eye(last[0].shape[-1], device=pixels.device, dtype=pixels.dtype)
    for weights, gradient in zip(last, gradients, strict=True):
        relevance = relevance + (gradient * weights).clamp(min=0).mean(1)[0].detach() @ relevance
    patches = relevance[0, 1:].view(1, 1, *seen.grid)
    resized = F.interpolate(patches, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    return (resized - resized.min()) / (resized.max() - resized.min()).clamp(min=1e-8)


def self_similarity(keys: torch.Tensor) -> torch.Tensor:
    """Cosines between all pairs of key tokens [n, t, width]: [n, t, t] (Tumanyan et al. 2022, equation 3)."""
    unit = F.normalize(keys, dim=-1)
    return unit @ unit.mT
