"""A clip taken apart: its networks and frames, to a file's tensors and back, and what they render."""

import dataclasses
from dataclasses import dataclass

import torch
from PIL import Image

from sfumato.editor.atlas_networks import AtlasNetworks, Sizes, composite, coordinates
from sfumato.editor.method import Tensors
from sfumato.editor.pixels import to_image

CHUNK = 32_768  # points that are rendered at one time
# Pixels of an atlas picture's side for each of the clip's longest. The mappings are 0.8 of the identity, so a
# pixel of the clip is 1.6 of an atlas's, where nothing grows or shrinks.
ATLAS_SCALE = 2


@dataclass(frozen=True)
class Decomposition:
    """What layered_atlas.py found."""

    networks: AtlasNetworks
    frames: torch.Tensor  # uint8 [n, h, w, 3], the clip itself
    frame_rate: float  # frames a second

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, h, w)."""
        return self.frames.shape[0], self.frames.shape[1], self.frames.shape[2]

    @property
    def atlas_side(self) -> int:
        """Pixels of an atlas picture's side, which shows uv from -1 to 1."""
        return ATLAS_SCALE * max(self.shape[1:])

    def tensors(self) -> Tensors:
        """For a safetensors file."""
        sizes = torch.tensor(dataclasses.astuple(self.networks.sizes))
        weights = {f"networks.{k}": v.detach().cpu() for k, v in self.networks.state_dict().items()}
        rate = torch.tensor(self.frame_rate, dtype=torch.float64)
        return {**weights, "sizes": sizes, "frames": self.frames.cpu(), "frame_rate": rate}

    @classmethod
    def of_tensors(cls, tensors: Tensors, device: torch.device) -> "Decomposition":
        """From `tensors`' result."""
        networks = AtlasNetworks(Sizes(*tensors["sizes"].tolist()))
        weights = {k.removeprefix("networks."): v for k, v in tensors.items() if k.startswith("networks.")}
        networks.load_state_dict(weights)
        networks.requires_grad_(False).to(device)
        return cls(networks, tensors["frames"].to(device), float(tensors["frame_rate"]))


@torch.no_grad()
def maps_of(found: Decomposition, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frame t's uv [h, w, 2] of both layers, and its alpha [h, w]."""
    _, height, width = found.shape
    device = found.frames.device
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y, torch.full_like(x, t)], -1).view(-1, 3).float().to(device)
    parts = coordinates(pixels, found.shape).split(CHUNK)
    uvs = [torch.cat(uv) for uv in zip(*(found.networks.uv(part) for part in parts), strict=True)]
    alpha = torch.cat([found.networks.alpha(part) for part in parts])
    return uvs[0].view(height, width, 2), uvs[1].view(height, width, 2), alpha.view(height, width)


@torch.no_grad()
def render_frame(found: Decomposition, t: int) -> tuple[Image.Image, Image.Image]:
    """Equation 1 at frame t, and its alpha, as pictures."""
    foreground, background, alpha = maps_of(found, t)
    pairs = zip(foreground.view(-1, 2).split(CHUNK), background.view(-1, 2).split(CHUNK), strict=True)
    layers = torch.cat([found.networks.colours(*pair) for pair in pairs], 1)
    pixels = composite(alpha.flatten(), layers).view(*alpha.shape, 3).permute(2, 0, 1)
    return to_image(pixels[None]), to_image(alpha.expand(1, 3, *alpha.shape))


@torch.no_grad()
def atlas_picture(found: Decomposition, layer: str) -> Image.Image:
    """A layer's atlas over uv from -1 to 1, square."""
    side = found.atlas_side
    middles = (torch.arange(side, device=found.frames.device) * 2 + 1) / side - 1
    v, u = torch.meshgrid(middles, middles, indexing="ij")
    places = found.networks.places(torch.stack([u, v], -1).view(-1, 2), layer)
    colours = torch.cat([found.networks.colours_at(part) for part in places.split(CHUNK)])
    return to_image(colours.view(1, side, side, 3).permute(0, 3, 1, 2))
