"""Layered neural atlases (Kasten et al. 2021): a clip as two pictures, and where its pixels lie in them.

A point p = (x, y, t) has a uv in the foreground's and one in the background's atlas, and an opacity alpha:

    c(p) = alpha c_f(uv_f) + (1 - alpha) c_b(uv_b)                                       equation 1
    loss = 5000 |c - c*|^2 + 1000 |grad c - grad c*|^2      reconstruction
         + rigidity of both mappings over 1 pixel, at first also over many
         + 5 |uv(p) - uv(p + flow)| + 49 |alpha(p) - alpha(p + flow)|
         + 1000 |c_f (1 - alpha)|^2                          sparsity, of c_f alone
         + 2000 cross-entropy(alpha, mask)                   at first

The mappings start as the identity times 0.8. Frames are uint8 [n, h, w, 3]. Flow: DIS, or RAFT where the
family has raft/. Mask: for each frame or for the first, or found from the motion (motion_mask.py). Pixels are
drawn in blocks of 2 x 2 (atlas_losses.py says why); the paper draws single ones. The terms are weighed in
atlas_objective.py.

Two more departures from the paper. Alpha starts as the mask: until it follows it, the sparsity can make all
of c_f black, and then alpha stays 0. And the sparsity does not move alpha: it would grow over the edges,
where 1 - alpha is dear to a bright c_f.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.seeding import generator_of, initialise
from sfumato.editor.atlas_networks import AtlasNetworks, Sizes
from sfumato.editor.atlas_objective import REFERENCE_SIDE, draw_blocks, identity_loss, losses, mask_loss
from sfumato.editor.decomposition import Decomposition, atlas_picture, render_frame
from sfumato.editor.method import Inputs, Method, Models, Progress, Tensors, real, whole
from sfumato.editor.optimised import Optimised, iterate
from sfumato.editor.pixels import MIN_SIDE, side_by_side
from sfumato.editor.raft import flow_by
from sfumato.editor.video import Video

if TYPE_CHECKING:
    from sfumato.editor.flow import Flows

MAX_BYTES = 8 * 2**30  # of an iteration; the defaults' is a tenth


@dataclass(frozen=True)
class Options:
    """Defaults: ykasten/layered-neural-atlases. Distances in pixels are those of the clip."""

    seed: int = whole(0, 0, 2**63 - 1)
    num_iterations: int = whole(400_000, 1, 400_000)
    num_pretraining_iterations: int = whole(100, 0, 10_000)  # of the mappings and alpha, before the others
    learning_rate: float = real(1e-4, 0.0, 1.0)  # Adam
    rate_decay: float = real(1.0, 1e-4, 1.0)  # what the rate has fallen to at the end, along a half cosine
    batch_size: int = whole(10_000, 4, 100_000)  # pixels an iteration
    size: int = whole(0, 0, 768)  # longest side in pixels; 0: the clip's, at most 768
    width: int = whole(256, 8, 512)  # of every layer
    foreground_layers: int = whole(6, 2, 12)
    background_layers: int = whole(4, 2, 12)
    alpha_layers: int = whole(8, 2, 12)
    atlas_layers: int = whole(8, 2, 12)
    alpha_bands: int = whole(5, 1, 12)
    atlas_bands: int = whole(10, 1, 12)
    num_flow_spans: int = whole(1, 1, 6)  # flow over 1, 2, 4 ... frames
    lambda_colour: float = real(5000.0, 0.0, 1e6)
    lambda_gradient: float = real(1000.0, 0.0, 1e6)
    lambda_rigidity: float = real(1.0, 0.0, 1e6)
    lambda_far_rigidity_foreground: float = real(5.0, 0.0, 1e6)
    lambda_far_rigidity_background: float = real(50.0, 0.0, 1e6)
    far_pixels: float = real(100.0, 1.0, 1e4)  # at a longest side of 768; smaller clips in proportion
    num_far_iterations: int = whole(5000, 0, 400_000)
    lambda_flow: float = real(5.0, 0.0, 1e6)
    lambda_alpha_flow: float = real(49.0, 0.0, 1e6)
    lambda_sparsity: float = real(1000.0, 0.0, 1e6)
    lambda_bootstrap: float = real(2000.0, 0.0, 1e6)
    num_bootstrap_iterations: int = whole(10_000, 0, 400_000)

    def sizes(self) -> Sizes:
        """Of the networks."""
        return Sizes(
            self.width, self.foreground_layers, self.background_layers, self.alpha_layers, self.atlas_layers,
            self.alpha_bands, self.atlas_bands,
        )  # fmt: skip


class State(Optimised):
    """The networks, Adam's moments, and the clip with its flow and mask."""

    def __init__(
        self, options: Options, networks: AtlasNetworks, video: Video, flows: "Flows", mask: torch.Tensor
    ) -> None:
        device = mask.device
        optimizer = torch.optim.Adam(networks.parameters(), lr=options.learning_rate)
        total = options.num_pretraining_iterations + options.num_iterations
        generator = generator_of(options.seed, device)
        super().__init__(total, dict(networks.named_parameters()), optimizer, generator)
        self.options, self.networks, self.video, self.mask = options, networks, video, mask
        self.frames = torch.from_numpy(video.frames).to(device)
        self.shape = (self.frames.shape[0], self.frames.shape[1], self.frames.shape[2])
        self.offsets = torch.tensor(flows.offsets, device=device)
        self.flow = torch.from_numpy(flows.flow).to(device)
        self.consistent = torch.from_numpy(flows.consistent).to(device)

    @property
    def pixels_per_uv(self) -> float:
        """What a distance in uv is in pixels: half the longest side."""
        return max(self.shape[1:]) / 2

    def decomposition(self) -> Decomposition:
        """As it is now."""
        return Decomposition(self.networks, self.frames, self.video.frame_rate)

    def preview(self) -> Image.Image:
        """A frame, its reconstruction, its alpha; below the two atlases."""
        found, middle = self.decomposition(), self.shape[0] // 2
        return side_by_side(
            [Image.fromarray(self.video.frames[middle]), *render_frame(found, middle)],
            [atlas_picture(found, layer) for layer in ("foreground", "background")],
        )

    def result(self) -> dict[str, Image.Image | Video | Tensors]:
        """The reconstruction as a video, alpha as one, both atlases, and the decomposition."""
        found = self.decomposition()
        rendered = [render_frame(found, t) for t in range(self.shape[0])]
        videos = [
            Video.of_images(pictures, self.video.frame_rate) for pictures in zip(*rendered, strict=True)
        ]
        return {
            "video": videos[0],
            "alpha": videos[1],
            "foreground": atlas_picture(found, "foreground"),
            "background": atlas_picture(found, "background"),
            "decomposition": found.tensors(),
        }


def check(options: Options, inputs: Inputs) -> None:
    """
    Raises:
        InvalidArgument: no video, one of a single frame, or one too narrow once it is shrunk.
        ResourceExhausted: the networks and the batch together need too much memory.
    """
    if (needed := options.sizes().bytes_of(options.batch_size)) > MAX_BYTES:
        most = options.batch_size * MAX_BYTES // needed
        raise ResourceExhausted(
            "batch_size", f"at most {most}, for networks of this width and depth", options.batch_size
        )
    if inputs.video is None:
        raise InvalidArgument("video", "given", "nothing", "A layered atlas is made of a video.")
    if len(inputs.video.frames) < 2:
        raise InvalidArgument("video", "at least 2 frames", len(inputs.video.frames))
    height, width = inputs.video.frames.shape[1:3]
    most = options.size or REFERENCE_SIDE
    if min(height, width) * min(1.0, most / max(height, width)) < MIN_SIDE:
        shape = f"{width}x{height}, shrunk to {most} on the longer side"
        raise InvalidArgument("video", f"at least {MIN_SIDE} pixels a side", shape)


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: as `check`, or no foreground was found.
    """
    # OpenCV is an extra: an editor without it lists its other methods.
    from sfumato.editor.flow import dis, estimate
    from sfumato.editor.motion_mask import mask_of

    check(options, inputs)
    assert inputs.video is not None
    video = inputs.video.fitted(options.size or REFERENCE_SIDE)
    between = dis if models.raft is None else flow_by(models.raft, models.device)
    flows = estimate(video.frames, options.num_flow_spans, between)
    mask = torch.from_numpy(mask_of(video.frames, flows, inputs.mask, inputs.mask_video))
    networks = AtlasNetworks(options.sizes())
    initialise(networks, generator_of(options.seed))
    return State(options, networks.to(models.device), video, flows, mask.to(models.device))


def step(state: State) -> dict[str, float]:
    """One iteration of Adam: of mappings and alpha alone at first, then of everything."""
    options = state.options
    done = state.iteration - options.num_pretraining_iterations
    if done < 0:
        start = {"identity": identity_loss(state)}
        if options.lambda_bootstrap:
            start["bootstrap"] = options.lambda_bootstrap * mask_loss(state)
        return state.descend(start)
    share = torch.tensor(done / max(1, options.num_iterations - 1), dtype=torch.float64)
    falling = (1 + torch.cos(torch.pi * share)) / 2
    state.set_rate(options.learning_rate * float(options.rate_decay + (1 - options.rate_decay) * falling))
    return state.descend(losses(state, *draw_blocks(state), done))


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("layered-atlas", Options, (), False, start, run, check, packages=("av", "cv2"))
