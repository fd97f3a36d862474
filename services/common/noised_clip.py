"""The noise-aware CLIP: an image tower f(z_t, t) over noised latents, in the joint space of clip/.

GLIDE (Nichol et al. 2021, section 4.2): CLIP's objective, but the image encoder sees x_t and the timestep, so
that the gradient of f(x_t, t) . g(c) guides sampling at every noise level. Here x_t are latents, and g is the
frozen text tower of clip/.

A family keeps it in clip_noised/: config.json (the arguments of NoisedImageEncoder) and model.safetensors. Or
it keeps GLIDE's own there, of pixels (glide_clip.py).

In: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) e, float [n, C, h, w], z_0 scaled latents; t, float [n], in
steps of the training schedule. Out: unit vectors [n, embed_dim].
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from sfumato.common.checked_weights import WeightsError
from sfumato.common.errors import NotFound
from sfumato.common.family import read_json
from sfumato.common.glide_clip import CLASS_NAME, GlideClip

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class NoisedImageEncoder(nn.Module):
    """A vision transformer whose tokens are the latent's pixels, with the timestep added to each."""

    side = 0  # latents of any size

    def __init__(
        self,
        in_channels: int = 16,
        sample_size: int = 8,
        width: int = 160,
        layers: int = 5,
        heads: int = 5,
        embed_dim: int = 128,
    ) -> None:
        """
        Args:
            in_channels: C, channels of the latents.
            sample_size: h and w that the positions are made for; other sizes interpolate them.
            width: of a token, a multiple of heads and even.
            layers, heads: of the transformer.
            embed_dim: of the joint space.
        """
        super().__init__()
        self.config = {
            "in_channels": in_channels, "sample_size": sample_size, "width": width, "layers": layers,
            "heads": heads, "embed_dim": embed_dim,
        }  # fmt: skip
        self.width, self.in_channels = width, in_channels
        self.embed = nn.Conv2d(in_channels, width, 1)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(1, width, sample_size, sample_size) * width**-0.5)
        self.time_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """[n, C, h, w] of any h and w, and t [n], to unit vectors [n, embed_dim]."""
        tokens = self.embed(latents)
        positions: torch.Tensor = self.positions
        if positions.shape[2:] != tokens.shape[2:]:
            positions = F.interpolate(positions, tokens.shape[2:], mode="bicubic")
        tokens = (tokens + positions).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(tokens), 1, -1), tokens], 1)
        sinusoids = get_timestep_embedding(
            timesteps, self.width, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        hidden_states = self.norm_in(tokens + self.time_embedding(sinusoids.to(latents.dtype))[:, None])
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return F.normalize(self.projection(self.norm_out(hidden_states[:, 0])), dim=-1)


def save_noised_clip(folder: Path, model: NoisedImageEncoder) -> None:
    """Writes clip_noised/, in the precision that the model has."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


def noised_clip_of(config: dict[str, Any]) -> NoisedImageEncoder | GlideClip:
    """The model of a config.json: GLIDE's by its name, else NoisedImageEncoder by its arguments."""
    if not is_glide(config):
        return NoisedImageEncoder(**config)
    return GlideClip(**{name: value for name, value in config.items() if name != "_class_name"})


def is_glide(config: dict[str, Any]) -> bool:
    """Whether it is GLIDE's, which brings its own texts; ours compares with those of clip/."""
    return config.get("_class_name") == CLASS_NAME


def check_latents(family: Path) -> None:
    """
    Raises:
        WeightsError: the family's UNet makes latents that its clip_noised/ does not take.
    """
    unet, config = read_json(family, "unet", "config.json"), read_json(family, "clip_noised", CONFIG)
    with torch.device("meta"):
        noised = noised_clip_of(config)
    if unet["in_channels"] != noised.in_channels:
        size = f"x{noised.side}x{noised.side}" if noised.side else " channels"
        what = f"{family / 'clip_noised'}: takes {noised.in_channels}{size}"
        raise WeightsError(f"{what}, the UNet's latents have {unet['in_channels']} channels")


def load_noised_clip(folder: Path) -> NoisedImageEncoder | GlideClip:
    """Reads clip_noised/ to float32, in eval mode.

    Raises:
        NotFound: a file is missing; the message says where it was looked for.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFound(f"{folder} holds no noise-aware CLIP: it has no {name}")
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    model = noised_clip_of(config)
    model.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return model.eval()
