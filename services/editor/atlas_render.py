"""A painted atlas on every frame of its clip (Kasten et al. 2021, section 4): what was painted covers it.

The painted picture shows uv from -1 to 1, as the atlas that was given out does, in any size; what is alike in
both was not painted. One iteration a frame.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.editor.atlas_layers import LayerMaps
from sfumato.editor.decomposition import Decomposition, atlas_picture
from sfumato.editor.method import Inputs, Method, Models, Progress, Tensors, choice, operation, whole
from sfumato.editor.pixels import fitted, to_image, to_tensor
from sfumato.editor.text2live_losses import composite
from sfumato.editor.video import Video

# Differences of 255 at which paint begins to show, and covers: less is what encoders do.
FAINT, FULL = 4.0, 16.0


@dataclass(frozen=True)
class Options:
    """Nothing is random; the seed is there because every edit has one."""

    decomposition: str = operation("decomposition")
    layer: str = choice("foreground", "background")
    seed: int = whole(0, 0, 2**63 - 1)


class State:
    """The frames that are done."""

    def __init__(self, maps: LayerMaps, edit_layer: torch.Tensor) -> None:
        self.iteration, self.num_iterations = 0, len(maps.frames)
        self.maps, self.edit_layer = maps, edit_layer
        self.done = (maps.frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)

    def tensors(self) -> Tensors:
        """All frames; those to come as in the clip."""
        return {"done": self.done.clone()}

    def load(self, tensors: Tensors) -> None:
        """Takes over what `tensors` gave."""
        self.done.copy_(tensors["done"])

    def preview(self) -> Image.Image:
        """The last frame that is done."""
        return Image.fromarray(self.done[max(0, self.iteration - 1)].cpu().numpy())

    def result(self) -> Mapping[str, Image.Image | Video | Tensors]:
        """The clip, and the paint."""
        video = Video(self.done.cpu().numpy(), self.maps.frame_rate)
        return {"video": video, "edit_layer": to_image(self.edit_layer)}


def paint(painted: torch.Tensor, atlas: torch.Tensor) -> torch.Tensor:
    """The edit layer [1, 4, s, s] between two pictures [1, 3, s, s]; clear where they are alike."""
    difference = (painted - atlas).abs().amax(1, keepdim=True) * 255
    alpha = ((difference - FAINT) / (FULL - FAINT)).clamp(0, 1)
    return torch.cat([painted, alpha], 1)


def check(options: Options, inputs: Inputs) -> None:
    """
    Raises:
        InvalidArgument: no painted atlas.
    """
    if inputs.image is None:
        raise InvalidArgument("image", "given", "nothing", "It is the atlas that was painted on.")
    if inputs.image.width != inputs.image.height:
        shape = f"{inputs.image.width}x{inputs.image.height}"
        raise InvalidArgument("image", "square, as the atlas is", shape)


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: as `check`.
    """
    check(options, inputs)
    assert inputs.image is not None
    found = Decomposition.of_tensors(inputs.earlier, models.device)
    side = found.atlas_side
    atlas = to_tensor(atlas_picture(found, options.layer), models.device)
    painted = to_tensor(fitted(inputs.image, (side, side)), models.device)
    return State(LayerMaps.of(found, options.layer), paint(painted, atlas))


def run(state: State) -> Iterator[Progress]:
    """A frame an iteration; its one figure is the share of the frame that is painted."""
    maps, side = state.maps, state.edit_layer.shape[-1]
    while state.iteration < state.num_iterations:
        t = state.iteration
        laid = maps.lay(state.edit_layer, t, (0, 0, side, side), side)
        edited = composite(laid, maps.frames[t][None])[0].permute(1, 2, 0)
        state.done[t] = (edited.clamp(0, 1) * 255).round().to(torch.uint8)
        state.iteration += 1
        yield Progress(state.iteration, state.num_iterations, {"total": float(laid[:, 3].mean())})


METHOD = Method("atlas-render", Options, (), True, start, run, check, packages=("av", "cv2"))
