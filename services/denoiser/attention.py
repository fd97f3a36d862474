"""The UNet's attention, seen and steered: cross-attention maps and prompt-to-prompt.

Prompt-to-prompt: Hertz et al. 2022, section 3.2 and algorithm 1. Maps: the same paper's section 3.1, and Tang
et al. 2022 (DAAM). A copy of the UNet that shares its weights has processors that look; the UNet itself keeps
its own, so that forwards which do not ask pay nothing and keep their bits. What a forward does with attention
travels with it as a `Probe`: forwards of several threads do not meet.

Source and target of an edit are two forwards of one row, one after the other. An identity edit gives the
target the source's bits, because both do the same operations on the same numbers.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.probes import Control, Probe, SourceProbe, TargetProbe

MAX_SELF_PIXELS = 16 * 16  # of layers whose self-attention is injected; the paper's


@dataclass(frozen=True)
class LayerMaps:
    """Cross-attention [tokens, height, width] of one resolution, averaged over its heads and layers."""

    num_layers: int
    maps: torch.Tensor


class ProbedAttention(AttnProcessor2_0):
    """diffusers' attention of a transformer block, with the probabilities open to a probe."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        probe: Probe | None = None,
    ) -> torch.Tensor:
        cross = encoder_hidden_states is not None
        wanted = probe is not None and (cross or (probe.steers and hidden_states.shape[1] <= MAX_SELF_PIXELS))
        if probe is None or not wanted:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if cross and attn.norm_cross:
            states = attn.norm_encoder_hidden_states(states)
        query, key = (
            attn.head_to_batch_dim(projected) for projected in (attn.to_q(hidden_states), attn.to_k(states))
        )
        probabilities = probe.see(self.layer, cross, attn.get_attention_scores(query, key))
        if not probe.steers:  # the bits stay those of a forward that nobody looks at
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        mixed = attn.batch_to_head_dim(torch.bmm(probabilities, attn.head_to_batch_dim(attn.to_v(states))))
        return attn.to_out[1](attn.to_out[0](mixed))


class AttentionUNet:
    """A UNet whose attention can be seen and steered; shares the given one's weights."""

    def __init__(self, unet: Any, device: torch.device) -> None:
        weights = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
        self.model: Any = copy.deepcopy(unet, weights)
        self.device = device
        processors = {
            name: ProbedAttention(name) if is_steerable(name, processor) else processor
            for name, processor in self.model.attn_processors.items()
        }
        self.model.set_attn_processor(processors)

    @torch.inference_mode()
    def noise_pred_and_maps(
        self, latents: torch.Tensor, timestep: float, conditioning: Conditioning
    ) -> tuple[torch.Tensor, list[LayerMaps]]:
        """One row's prediction, the same as Unet.noise_pred's, and its cross-attention maps.

        Args:
            latents: float32 [1, in_channels, height, width].
            timestep: of the noise schedule.
            conditioning: one row.

        Returns:
            float32 [1, out_channels, height, width], and the maps by resolution, the largest first.
        """
        probe = Probe()
        noise_pred = self._forward(latents, timestep, conditioning, probe)
        return noise_pred, by_resolution(probe.maps, latents.shape[2], latents.shape[3])

    @torch.inference_mode()
    def edit(
        self,
        latents: torch.Tensor,
        timestep: float,
        conditioning: Conditioning,
        control: Control,
        replace_cross: bool,
        replace_self: bool,
    ) -> tuple[torch.Tensor, list[list[LayerMaps]]]:
        """One conditional step of prompt-to-prompt.

        Args:
            latents: float32 [2, in_channels, height, width]: source, target.
            timestep: of the noise schedule.
            conditioning: two rows: source, target.
            control: how the target follows.
            replace_cross: whether the source's cross-attention is injected.
            replace_self: whether its self-attention is, up to 16x16.

        Returns:
            float32 [2, out_channels, height, width], and the maps of source and target.
        """
        given = control.mapper, control.inject, control.weights
        control = Control(*(tensor.to(self.device, self.model.dtype) for tensor in given))
        source = SourceProbe()
        first = self._forward(latents[:1], timestep, conditioning[:1], source)
        target = TargetProbe(
            source=source.kept, control=control, replace_cross=replace_cross, replace_self=replace_self
        )
        second = self._forward(latents[1:], timestep, conditioning[1:], target)
        height, width = latents.shape[2:]
        maps = [by_resolution(probe.maps, height, width) for probe in (source, target)]
        return torch.cat([first, second]), maps

    def _forward(
        self, latents: torch.Tensor, timestep: float, conditioning: Conditioning, probe: Probe
    ) -> torch.Tensor:
        result: torch.Tensor = self.model(
            latents.to(self.device, self.model.dtype),
            torch.tensor([timestep], device=self.device),
            **conditioning.to(self.device, self.model.dtype).arguments,
            cross_attention_kwargs={"probe": probe},
            return_dict=False,
        )[0]
        return result.to("cpu", latents.dtype)


def is_steerable(layer: str, processor: object) -> bool:
    """Whether it is the attention of a transformer block, as those of Stable Diffusion's UNets."""
    return layer.endswith(("attn1.processor", "attn2.processor")) and isinstance(processor, AttnProcessor2_0)


def num_cross_attention_layers(unet: Any) -> int:
    """How many layers attend to the text in a way that can be seen."""
    layers = unet.attn_processors.items()
    return sum(name.endswith("attn2.processor") and is_steerable(name, value) for name, value in layers)


def by_resolution(maps: list[torch.Tensor], height: int, width: int) -> list[LayerMaps]:
    """Averages layers [tokens, pixels] of one size; height and width are the latents'."""
    sizes: dict[int, tuple[int, int]] = {}
    while height * width not in sizes:  # every level halves, rounding up
        sizes[height * width] = (height, width)
        height, width = -(-height // 2), -(-width // 2)
    groups: dict[int, list[torch.Tensor]] = {}
    for layer in maps:
        groups.setdefault(layer.shape[1], []).append(layer)
    return [
        LayerMaps(len(layers), torch.stack(layers).mean(0).unflatten(1, sizes[pixels]).float().cpu())
        for pixels, layers in sorted(groups.items(), reverse=True)
    ]
