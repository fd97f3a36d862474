"""Attention's part of the messages between gateway and denoiser."""

import torch
from sfumato_protos.v1 import denoiser_pb2

from sfumato.common.tensors import from_message, to_message
from sfumato.gateway.alignment import AttentionControl
from sfumato.gateway.attention_maps import LayerMaps

MAX_TOKENS = 1024


def control_message(control: AttentionControl) -> denoiser_pb2.AttentionControl:
    """For an edit's stream."""
    return denoiser_pb2.AttentionControl(
        mapper=to_message(control.mapper),
        inject=to_message(control.inject),
        weights=to_message(control.weights),
    )


def layer_maps(response: denoiser_pb2.DenoiseResponse, latents: torch.Tensor) -> list[list[LayerMaps]]:
    """The maps of each row that was asked for."""
    limit = MAX_TOKENS * 2 * latents[0, 0].numel()
    levels = [
        (level.num_layers, from_message(level.maps, "attention.maps", (None, None, None, None), limit))
        for level in response.attention
    ]
    return [
        [LayerMaps(num_layers, maps[row]) for num_layers, maps in levels] for row in range(len(levels[0][1]))
    ]
