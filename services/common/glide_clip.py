"""GLIDE's noised CLIP (Nichol et al. 2021, section 4.2; openai/glide-text2im), which has texts of its own.

Two transformers with a joint space: f(x_t, t) of pixels under GLIDE's cosine schedule, and g(c) of byte-pair
tokens. A row of a table of timesteps stands where CLIP has its class token. GLIDE climbs grad_scale *
exp(logit_scale) * f . g with exp(logit_scale) = 100: its scale 3 is clip_guidance_scale 300 here.

In: x_t, float [n, 3, side, side], RGB of -1 to 1 before the noise; t, float [n], in steps of GLIDE's
schedule; tokens, int [n, context_length]. Out: unit vectors [n, embed_dim].
"""

import torch
from torch import nn
from torch.nn import functional as F

CLASS_NAME = "GlideClip"
HEAD_WIDTH = 64  # of both transformers
# Of RGB from 0 to 255.
MEAN, STD = (122.77093945, 116.74601272, 104.09373519), (68.50053285, 66.63215831, 70.32316309)


class Block(nn.Module):
    """Attention and two layers, each after a norm and beside a skip; keys have no bias."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.to_v, self.to_out = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_1, self.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, tokens, width] to the same."""
        y = self.norm_1(x)
        q, k, v = (
            layer(y).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        return x + self.linear_2(F.gelu(self.linear_1(self.norm_2(x))))


class _Projection(nn.Module):
    """One token [n, width] to the joint space."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, embed_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Unit vectors [n, embed_dim]."""
        return F.normalize(self.linear(self.norm(x)), dim=-1)


class _ImageTower(nn.Module):
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, side: int, patch_size: int, num_timesteps: int, width: int, layers: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.timesteps = nn.Embedding(num_timesteps, width)
        self.positions = nn.Parameter(torch.zeros(1 + (side // patch_size) ** 2, width))
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, causal=False) for _ in range(layers)))
        self.projection = _Projection(width, embed_dim)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        patches = self.patches(((x + 1) * 127.5 - self.mean) / self.std).flatten(2).transpose(1, 2)
        rows = timesteps.round().long().clamp(0, self.timesteps.num_embeddings - 1)
        tokens = torch.cat([self.timesteps(rows)[:, None], patches], 1) + self.positions
        unit: torch.Tensor = self.projection(self.blocks(self.norm(tokens))[:, 0])
        return unit


class _TextTower(nn.Module):
    def __init__(
        self, vocabulary_size: int, context_length: int, width: int, layers: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(torch.zeros(context_length, width))
        self.blocks = nn.Sequential(*(Block(width, causal=True) for _ in range(layers)))
        self.projection = _Projection(width, embed_dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.tokens(tokens) + self.positions)
        ends = tokens.argmax(1)  # the end token's id is the largest; what pads comes after it and is not seen
        unit: torch.Tensor = self.projection(x[torch.arange(len(x)), ends])
        return unit


class GlideClip(nn.Module):
    """Both towers."""

    in_channels = 3

    def __init__(
        self,
        side: int = 64,
        patch_size: int = 4,
        num_timesteps: int = 1000,
        image_width: int = 768,
        image_layers: int = 12,
        vocabulary_size: int = 65536,
        context_length: int = 77,
        text_width: int = 512,
        text_layers: int = 12,
        embed_dim: int = 512,
    ) -> None:
        """The defaults are the published sizes.

        Args:
            side: of the pixels that it takes.
            patch_size: side of a patch, divides side.
            num_timesteps: of its schedule.
            image_width, text_width: of a token, multiples of HEAD_WIDTH.
            image_layers, text_layers: of the transformers.
            vocabulary_size: ids of tokens.
            context_length: tokens of a text.
            embed_dim: of the joint space.
        """
        super().__init__()
        self.side, self.context_length = side, context_length
        self.image = _ImageTower(side, patch_size, num_timesteps, image_width, image_layers, embed_dim)
        self.text = _TextTower(vocabulary_size, context_length, text_width, text_layers, embed_dim)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t [n, 3, side, side] and t [n] (rounded, and kept in the schedule) to unit vectors."""
        unit: torch.Tensor = self.image(x, timesteps)
        return unit

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [n, context_length], start and end among them, to unit vectors."""
        unit: torch.Tensor = self.text(tokens)
        return unit
