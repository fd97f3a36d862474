"""CLIP as a loss: differentiable resize and normalisation, embeddings of images and texts, targets."""

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.model import get_model_preprocess_cfg
from PIL import Image
from torch.nn import functional as F

from sfumato.editor.losses import Targets
from sfumato.editor.method import ImagePrompt, Prompt
from sfumato.editor.pixels import to_tensor


class Clip:
    """An open_clip model, frozen; images are float [n, 3, h, w] in [0, 1] on its device."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        size = model.visual.image_size
        self.side: int = size if isinstance(size, int) else size[0]
        config = get_model_preprocess_cfg(model)
        self.mean, self.std = (
            torch.tensor(config[name], device=device).view(3, 1, 1) for name in ("mean", "std")
        )

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """To the mean and deviation that CLIP was trained with."""
        return (images - self.mean) / self.std

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """The shorter side to CLIP's (bicubic, antialiased), then the middle square."""
        height, width = images.shape[-2:]
        if (height, width) == (self.side, self.side):
            return images
        short = min(height, width)
        size = round(height * self.side / short), round(width * self.side / short)
        resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        return resized[..., top : top + self.side, left : left + self.side]

    def stretch(self, images: torch.Tensor) -> torch.Tensor:
        """The whole image to CLIP's square, whatever its aspect."""
        if images.shape[-2:] == (self.side, self.side):
            return images
        size = (self.side, self.side)
        return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit embeddings [n, d], differentiable."""
        features: torch.Tensor = self.model.encode_image(self.normalise(self.resize(images)))
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings [n, d]."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def embed_template(self, text: str, templates: Sequence[str]) -> torch.Tensor:
        """The unit mean [d] of a text's embeddings in templates such as "a photo of {}"."""
        mean = self.embed_texts([template.format(text) for template in templates]).mean(0)
        return F.normalize(mean, dim=-1)

    @torch.no_grad()
    def targets(
        self,
        prompts: Sequence[Prompt],
        image_prompts: Sequence[ImagePrompt] = (),
        images: Sequence[Image.Image] = (),
        noise: torch.Tensor | None = None,
    ) -> Targets:
        """Texts, images and unit noise embeddings [m, d] (weight 1) as targets of `prompt_loss`."""
        rows = [self.embed_texts([prompt.text for prompt in prompts])] if prompts else []
        rows += [self.embed_images(to_tensor(image, self.device)) for image in images]
        rows += [] if noise is None else [noise]
        weighted: list[Prompt | ImagePrompt] = [*prompts, *image_prompts]
        spare = sum(map(len, rows)) - len(weighted)
        weights = [prompt.weight for prompt in weighted] + [1.0] * spare
        stops = [prompt.stop for prompt in weighted] + [float("-inf")] * spare
        return Targets(
            torch.cat(rows),
            torch.tensor(weights, device=self.device),
            torch.tensor(stops, device=self.device),
        )
