"""A family as the gateway knows it, from what each model service says of its part."""

import json
import math

import torch
from sfumato_protos.v1 import decoder_pb2, denoiser_pb2, encoder_pb2

from sfumato.common.errors import SfumatoError
from sfumato.common.latent_preview import projection_shape
from sfumato.common.tensors import from_message
from sfumato.gateway.parameters import FamilyInfo


def family_info(
    encoder: encoder_pb2.GetEncoderInfoResponse,
    decoder: decoder_pb2.GetDecoderInfoResponse,
    denoiser: denoiser_pb2.GetDenoiserInfoResponse,
) -> FamilyInfo:
    """All three together.

    Raises:
        SfumatoError: their parts do not go together.
    """
    names = {encoder.family, decoder.family, denoiser.family}
    if len(names) > 1:
        raise SfumatoError(f"the services hold different families: {', '.join(sorted(names))}")
    if denoiser.in_channels != decoder.latent_channels:
        raise SfumatoError(f"the UNet takes {denoiser.in_channels} channels, the autoencoder has "
                           f"{decoder.latent_channels}; inpainting UNets are not served")  # fmt: skip
    if denoiser.pooled_size != encoder.pooled_size:
        raise SfumatoError(f"the UNet takes a pooled embedding of {denoiser.pooled_size}, the encoder "
                           f"gives one of {encoder.pooled_size}")  # fmt: skip
    area = denoiser.max_latent_area * decoder.vae_scale_factor**2
    return FamilyInfo(
        name=encoder.family,
        latent_channels=decoder.latent_channels,
        sample_size=denoiser.sample_size,
        vae_scale_factor=decoder.vae_scale_factor,
        scaling_factor=decoder.scaling_factor,
        max_pixels=min(decoder.max_pixels, area),
        max_tokens=encoder.max_tokens,
        scheduler_config=json.loads(denoiser.scheduler_config),
        num_cross_attention_layers=denoiser.num_cross_attention_layers,
        embedding_size=encoder.embedding_size,
        noised_clip=encoder.noised_clip,
        noised_clip_side=encoder.noised_clip_side,
        num_time_ids=denoiser.num_time_ids,
        guidance_embedded=denoiser.guidance_embedded,
        adapters=tuple(sorted({*denoiser.adapters} & {*encoder.adapters})),
        preview_projection=_preview_projection(decoder),
    )


def _preview_projection(decoder: decoder_pb2.GetDecoderInfoResponse) -> torch.Tensor | None:
    if not decoder.HasField("preview_projection"):
        return None
    shape = projection_shape(decoder.latent_channels, decoder.vae_scale_factor)
    return from_message(decoder.preview_projection, "preview_projection", shape, math.prod(shape))
