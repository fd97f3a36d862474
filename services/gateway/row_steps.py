"""What a request costs: row-steps, one being one row of conditioning through the UNet once.

They are counted at the family's own size; a larger image's count for as much more as its area is larger.
"""

import math
from collections.abc import Sequence

from sfumato.gateway.edit_parameters import EditParameters
from sfumato.gateway.guidance_options import PREDICTED_X0
from sfumato.gateway.parameters import FamilyInfo, Parameters
from sfumato.gateway.sampling import num_timesteps

BACKWARD = 2  # a backward pass through the UNet, in forward passes of the same rows
THROUGH_DECODER = 4  # an image decoded, seen by CLIP and differentiated, in rows: an estimate
NOISED_CLIP = 1  # a latent seen by the noise-aware CLIP and differentiated, in rows: an estimate
EDIT_ROWS = 4  # null text and own prompt, for source and target


def num_evaluations(p: Parameters, family: FamilyInfo) -> int:
    """UNet evaluations of one image, after strength.

    Raises:
        InvalidArgument: the sampler cannot take so many steps.
    """
    config = family.scheduler_config
    return num_timesteps(p.scheduler, config, p.num_inference_steps, p.sampled_share)


def row_steps(p: Parameters, family: FamilyInfo) -> int:
    """Of all images of a request. Raises as num_evaluations."""
    rows = len(p.conditioning_texts)
    steps = num_evaluations(p, family)
    total = rows * steps
    if p.guidance.clip is not None:
        gradient = NOISED_CLIP
        if not p.guidance.noised:
            back = BACKWARD * rows if p.guidance.clip.path == PREDICTED_X0 else 0
            gradient = THROUGH_DECODER + back
        total += gradient * sum(p.guidance.is_active(index, steps) for index in range(steps))
    return sized(p.num_images * total, p, family)


def comparison_row_steps(settings: Sequence[Parameters], family: FamilyInfo) -> int:
    """Of all settings."""
    return sum(row_steps(p, family) for p in settings)


def edit_row_steps(p: EditParameters, family: FamilyInfo) -> int:
    """Of a prompt edit, its inversion included."""
    steps = p.source.num_inference_steps
    return sized(steps * (EDIT_ROWS + (1 if p.source.image else 0)), p.source, family)


def input_bytes(p: Parameters) -> int:
    """Bytes of the images that a waiting request holds."""
    clip = p.guidance.clip
    prompts = clip.image_prompts if clip else ()
    return len(p.image) + len(p.mask) + sum(len(image) for image in prompts)


def sized(total: int, p: Parameters, family: FamilyInfo) -> int:
    """Row-steps of the size asked for in those of the family's own."""
    own = (family.sample_size * family.vae_scale_factor) ** 2
    return math.ceil(total * p.width * p.height / own)
