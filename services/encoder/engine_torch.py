"""CLIP in torch: transformers' text encoder for conditioning, open_clip for the joint space."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from sfumato.common.family import part_of
from sfumato.common.traced import Traced
from sfumato.encoder.words import Word, words_of


class TextEncoder:
    """The family's text_encoder/ and tokenizer/, as Stable Diffusion uses them."""

    def __init__(self, family: Path, device: torch.device) -> None:
        tokenizer: Any = CLIPTokenizer.from_pretrained(part_of(family, "tokenizer"))
        self.tokenizer = tokenizer
        self.weights = part_of(family, "text_encoder")
        model: Any = CLIPTextModel.from_pretrained(self.weights, use_safetensors=True)
        self.model = model.to(device=device, dtype=torch.float32).eval()
        self.device = device
        # Another engine's forward may take its place.
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.hidden_states
        self.max_tokens: int = int(self.tokenizer.model_max_length)
        self.hidden_size: int = int(self.model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> tuple[torch.Tensor, list[int]]:
        """Last hidden states [texts, max_tokens, hidden_size], and how many tokens of each were cut."""
        embeds, cut = [], []
        # One forward per text: its bits must not depend on which texts come with it.
        for text in texts:
            tokens = self.tokenizer(
                text, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
            whole = self.tokenizer(text, truncation=False)["input_ids"]
            cut.append(max(0, len(whole) - self.max_tokens))
            embeds.append(self.forward(tokens.input_ids))
        return torch.cat(embeds), cut

    def hidden_states(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [1, max_tokens] to last hidden states [1, max_tokens, hidden_size], on the CPU."""
        states: torch.Tensor = self.model(token_ids.to(self.device))[0]
        return states.cpu()

    def words(self, texts: list[str]) -> list[list[Word]]:
        """The words of each text and their tokens; cut ones are left out."""
        return [words_of(self.tokenizer, text, self.max_tokens) for text in texts]


class JointEncoder:
    """The family's clip/ folder, in open_clip's `local-dir:` layout; float64 to check gradients by."""

    def __init__(self, family: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        import open_clip

        source = f"local-dir:{part_of(family, 'clip')}"
        model, preprocess = open_clip.create_model_from_pretrained(source, weights_only=True)
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.preprocess: Any = preprocess
        self.tokenizer: Any = open_clip.get_tokenizer(source)
        self.device, self.dtype = device, dtype
        size = self.model.visual.image_size
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.mean, self.std = (
            torch.tensor(values, device=device, dtype=dtype).view(3, 1, 1)
            for values in (self.model.visual.image_mean, self.model.visual.image_std)
        )
        self.traced_features = Traced(self.features_of)
        with torch.inference_mode():
            self.embedding_size = int(self.embed_texts(["warm"]).shape[-1])

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors [texts, embedding_size]."""
        tokens = self.tokenizer(texts).to(self.device)
        features: torch.Tensor = self.model.encode_text(tokens, normalize=True)
        return features.cpu()

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Unit vectors [images, embedding_size]."""
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        features: torch.Tensor = self.model.encode_image(pixels, normalize=True)
        return features.cpu()

    def features_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB [images, 3, image_size, image_size] in [-1, 1] to unit vectors; differentiable."""
        features: torch.Tensor = self.model.encode_image(
            ((pixels + 1) / 2 - self.mean) / self.std, normalize=True
        )
        return features
