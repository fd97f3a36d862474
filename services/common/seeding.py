"""Random weights and generators from one seed, without touching torch's global generator."""

import math

import torch
from torch import nn


def generator_of(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on the device, seeded."""
    return torch.Generator(device).manual_seed(seed)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Redraws the default weights of all convolutions and linear layers from the generator, on the CPU."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            if part.bias is not None:
                bound = part.weight[0].numel() ** -0.5
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)
