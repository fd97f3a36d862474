"""What layered_atlas.py minimises: its terms, weighted, at random pixels of the clip."""

from typing import TYPE_CHECKING

import torch

from sfumato.editor import atlas_losses as terms
from sfumato.editor.atlas_networks import composite, coordinates, opacity_of

if TYPE_CHECKING:
    from sfumato.editor.layered_atlas import State

UV_SCALE = 0.8  # of the mappings' start
REFERENCE_SIDE = 768  # of the paper's clips, whose distance in pixels far_pixels is


def identity_loss(state: "State") -> torch.Tensor:
    """How far both mappings are from the identity times UV_SCALE, at random points of the clip."""
    random = torch.rand(state.options.batch_size, 3, generator=state.generator, device=state.mask.device)
    num_frames, height, width = state.shape
    points = coordinates(random * random.new_tensor([width - 1, height - 1, num_frames - 1]), state.shape)
    wanted = UV_SCALE * points[:, :2]
    return torch.stack([(uv - wanted).square().sum(-1).mean() for uv in state.networks.uv(points)]).sum()


def mask_loss(state: "State") -> torch.Tensor:
    """Cross-entropy of the opacity with the mask, at the pixels of random blocks."""
    pixels = draw_blocks(state)[1].flatten(0, 1)
    x, y, t = pixels.unbind(-1)
    logits = state.networks.logits(coordinates(pixels.float(), state.shape))
    return terms.bootstrap_loss(logits, state.mask[t, y, x])


def draw_blocks(state: "State") -> tuple[torch.Tensor, torch.Tensor]:
    """Random corners (x, y, t) int64 [b, 3], and the pixels of their 2 x 2 blocks [b, 4, 3]."""
    num_frames, height, width = state.shape
    device, count = state.mask.device, max(1, state.options.batch_size // 4)
    corner = torch.stack(
        [
            torch.randint(high, (count,), generator=state.generator, device=device)
            for high in (width - 1, height - 1, num_frames)
        ],
        -1,
    )
    moves = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], device=device)
    return corner, corner[:, None] + moves


def matches(state: "State", corner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """At a random offset each: which corners have consistent flow (bool [b]), and where those lead [k, 3]."""
    x, y, t = corner.unbind(-1)
    row = torch.randint(len(state.offsets), x.shape, generator=state.generator, device=x.device)
    known = state.consistent[row, t, y, x]
    row, x, y, t = row[known], x[known], y[known], t[known]
    flow = state.flow[row, t, y, x].float()
    return known, torch.stack([x + flow[:, 0], y + flow[:, 1], (t + state.offsets[row]).float()], -1)


def losses(state: "State", corner: torch.Tensor, blocks: torch.Tensor, done: int) -> dict[str, torch.Tensor]:
    """The weighted terms at blocks of pixels, less those that have ended."""
    options, networks, count = state.options, state.networks, len(corner)
    known, there = matches(state, corner)
    points = coordinates(torch.cat([blocks.flatten(0, 1).float(), there]), state.shape)
    uvs, logits, inside = networks.uv(points), networks.logits(points), 4 * count
    alphas = opacity_of(logits)
    uv_blocks = [uv[:inside].unflatten(0, (count, 4)) for uv in uvs]
    alpha, alpha_there = alphas[:inside], alphas[inside:]
    layers = networks.colours(uvs[0][:inside], uvs[1][:inside])
    colours = composite(alpha, layers).unflatten(0, (count, 4))
    x, y, t = blocks.unbind(-1)
    truth = state.frames[t, y, x].float() / 255
    alpha_corner = alpha.view(count, 4)[known, 0]
    found = {
        "colour": options.lambda_colour * terms.colour_loss(colours, truth),
        "gradient": options.lambda_gradient * terms.gradient_loss(colours, truth),
        "sparsity": options.lambda_sparsity * terms.sparsity_loss(layers[0], alpha.detach()),
        "alpha_flow": options.lambda_alpha_flow * terms.alpha_flow_loss(alpha_corner, alpha_there),
    }
    scale = state.pixels_per_uv / UV_SCALE
    weights = (alpha_corner, 1 - alpha_corner)
    flow = [
        terms.flow_loss(uv[known, 0], whole_uv[inside:], weight, scale)
        for uv, whole_uv, weight in zip(uv_blocks, uvs, weights, strict=True)
    ]
    found["flow"] = options.lambda_flow * torch.stack(flow).sum()
    rigid = [terms.rigidity(uv[:, 0], uv[:, 1], uv[:, 2], scale) for uv in uv_blocks]
    found["rigidity"] = options.lambda_rigidity * torch.stack(rigid).sum()
    if done < options.num_far_iterations:
        found["far_rigidity"] = far_rigidity(state, corner, [uv[:, 0] for uv in uv_blocks], scale)
    if done < options.num_bootstrap_iterations and options.lambda_bootstrap:
        mask = state.mask[t, y, x].flatten()
        found["bootstrap"] = options.lambda_bootstrap * terms.bootstrap_loss(logits[:inside], mask)
    return found


def far_rigidity(state: "State", corner: torch.Tensor, at: list[torch.Tensor], scale: float) -> torch.Tensor:
    """Rigidity over far_pixels, weighted by layer; points beyond the frame are points, too."""
    options = state.options
    distance = options.far_pixels * max(state.shape[1:]) / REFERENCE_SIDE
    moves = corner.new_tensor([[1, 0, 0], [0, 1, 0]]).float() * distance
    points = coordinates((corner[None].float() + moves[:, None]).flatten(0, 1), state.shape)
    weights = (options.lambda_far_rigidity_foreground, options.lambda_far_rigidity_background)
    found = []
    for here, uv, weight in zip(at, state.networks.uv(points), weights, strict=True):
        right, below = uv.chunk(2)
        found.append(weight * terms.rigidity(here, right, below, scale / distance))
    return torch.stack(found).sum()
