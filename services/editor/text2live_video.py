"""Text2LIVE for a clip (Bar-Tal et al. 2022, section 3.4): the edit layer is painted on an atlas of the clip.

The generator sees the part of the atlas that the clip shows; its layer is laid into frames by the mappings,
which stay as layered_atlas.py found them. The losses are those of an image (text2live_losses.py), on random
frames, around the layer where it is small, and on the atlas itself; their mean over these is minimised.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sfumato.common.seeding import generator_of, initialise
from sfumato.editor import text2live
from sfumato.editor.atlas_layers import LayerMaps, on_atlas
from sfumato.editor.attention import check_vit
from sfumato.editor.clip import Clip
from sfumato.editor.decomposition import Decomposition, atlas_picture
from sfumato.editor.method import Inputs, Method, Models, Progress, Tensors, choice, operation, real, whole
from sfumato.editor.optimised import iterate
from sfumato.editor.pixels import to_image, to_tensor
from sfumato.editor.skip_unet import SkipUNet, num_scales_of
from sfumato.editor.text2live import LEAST_RATE
from sfumato.editor.text2live_losses import LayerOptions, composite, losses
from sfumato.editor.video import Video

L0, RATE_DECAY = 0.005, 0.999  # of the video configuration


@dataclass(frozen=True)
class Options(LayerOptions):
    """Defaults: omerbt/Text2LIVE, video."""

    decomposition: str = operation("decomposition")
    layer: str = choice("foreground", "background")
    num_iterations: int = whole(3000, 1, 10_000)
    num_frames: int = whole(3, 1, 16)  # an iteration
    num_views: int = whole(6, 1, 256)  # of each
    lambda_structure: float = real(3.0, 0.0, 1e3)
    lambda_sparsity: float = real(0.1, 0.0, 1e3)


class State(text2live.State):
    """Text2LIVE's, whose image is a box of the atlas, and the maps into the frames."""

    l0 = L0

    def __init__(
        self, options: Options, network: SkipUNet, clip: Clip, atlas: torch.Tensor, maps: LayerMaps
    ) -> None:
        self.side, self.maps, self.atlas = atlas.shape[-1], maps, atlas
        self.box = maps.box(self.side)
        left, top, right, bottom = self.box
        super().__init__(options, network, clip, atlas[..., top:bottom, left:right])

    def frame(self, layer: torch.Tensor, t: int) -> torch.Tensor:
        """The edit layer in frame t."""
        return self.maps.lay(layer, t, self.box, self.side)

    @torch.no_grad()
    def edited(self, layer: torch.Tensor, t: int) -> Image.Image:
        """Frame t under the edit layer."""
        return to_image(composite(self.frame(layer, t), self.maps.frames[t][None]))

    def preview(self) -> Image.Image:
        """The middle frame."""
        return self.edited(self.edit_layer(), len(self.maps.frames) // 2)

    def result(self) -> Mapping[str, Image.Image | Video | Tensors]:
        """The edited clip, the edit layer (RGBA) on the atlas, and the atlas under it."""
        layer, count = self.edit_layer(), len(self.maps.frames)
        pictures = [self.edited(layer, t) for t in range(count)]
        painted = on_atlas(to_image(layer), self.box, self.side)
        atlas = Image.alpha_composite(to_image(self.atlas).convert("RGBA"), painted).convert("RGB")
        video = Video.of_images(pictures, self.maps.frame_rate)
        return {"video": video, "edit_layer": painted, "atlas": atlas}


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: a CLIP without a plain ViT, or a layer that shows one colour.
    """
    clip = Clip(models.clip, models.tokenizer, models.device)
    check_vit(clip.model.visual)
    found = Decomposition.of_tensors(inputs.earlier, models.device)
    maps = LayerMaps.of(found, options.layer)
    picture = atlas_picture(found, options.layer)
    left, top, right, bottom = box = maps.box(found.atlas_side)
    text2live.check_varied(np.asarray(picture.crop(box)), "layer")
    scales = num_scales_of(bottom - top, right - left, options.num_scales)
    network = SkipUNet(3, 4, options.channels, num_scales=scales)
    initialise(network, generator_of(options.seed))
    return State(options, network.to(models.device), clip, to_tensor(picture, models.device), maps)


def step(state: State) -> dict[str, float]:
    """One iteration of MADGRAD on random frames and the atlas."""
    options, maps = state.options, state.maps
    state.set_rate(max(LEAST_RATE, options.learning_rate * RATE_DECAY**state.iteration))
    layer: torch.Tensor = state.network(state.image)
    size = (options.num_frames,)
    chosen = torch.randint(len(maps.frames), size, generator=state.generator, device=layer.device)
    seen = [losses(state, state.image, layer)]
    for t in chosen.tolist():
        rows, columns = maps.crop(t)
        here = maps.frames[t][None, :, rows, columns]
        seen.append(losses(state, here, state.frame(layer, t)[..., rows, columns]))
    return state.descend({name: torch.stack([terms[name] for terms in seen]).mean() for name in seen[0]})


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("text2live-video", Options, ("clip",), False, start, run, packages=("av", "cv2"))
