"""CLIP in torch: transformers' text encoders for conditioning, open_clip for the joint space."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sfumato.common.adapters import adapted, read_change
from sfumato.common.clip import load_clip
from sfumato.common.family import part_of
from sfumato.common.family_parts import check_part, pipeline_config
from sfumato.common.forwards import Forward, Tensors, concatenated, split, torch_rows
from sfumato.common.traced import Traced
from sfumato.encoder.words import Word, words_of


class EncodedTexts(NamedTuple):
    """Conditioning [texts, max_tokens, hidden_size], how many tokens of each text were cut, and with SDXL the
    pooled embedding [texts, pooled_size]."""

    prompt_embeds: torch.Tensor
    num_cut: list[int]
    pooled_prompt_embeds: torch.Tensor | None


class Tokens(NamedTuple):
    """Of texts: each tower's ids [encoded, max_tokens] of those that are encoded, their indices, and how many
    tokens of each text were cut."""

    ids: Tensors
    encoded: list[int]
    num_cut: list[int]


@dataclass(frozen=True)
class Tower:
    """One text encoder and its tokenizer.

    Attributes:
        part: folder of the family.
    """

    part: str
    tokenizer: Any
    model: Any

    def token_ids(self, text: str, max_tokens: int) -> torch.Tensor:
        """[1, max_tokens]."""
        tokens = self.tokenizer(
            text, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt"
        )
        ids: torch.Tensor = tokens.input_ids
        return ids


class TextEncoder:
    """The family's text encoder(s) and tokenizer(s), as Stable Diffusion and SDXL use them.

    SDXL has both, its refiner the second alone.
    """

    def __init__(self, family: Path, device: torch.device) -> None:
        is_xl = (family / "text_encoder_2").is_dir()
        self.towers = []
        if not is_xl or (family / "text_encoder").is_dir():
            self.towers.append(_tower(family, "", CLIPTextModel, device))
        if is_xl:
            self.towers.append(_tower(family, "_2", CLIPTextModelWithProjection, device))
        self.weights = part_of(family, self.towers[0].part)
        # SDXL's null text is no text: zeros (diffusers' default for its pipeline).
        config = pipeline_config(family)
        self.null_is_zero = is_xl and config.get("force_zeros_for_empty_prompt", True)
        self.tokenizer, self.model = self.towers[0].tokenizer, self.towers[0].model
        self.device = device
        # Token ids to hidden states and, of SDXL, pooled embeddings. Another engine's may take its place.
        self.forward = Forward("encode_text", self.hidden_states, torch_rows(device))
        positions = int(self.model.config.max_position_embeddings)
        self.max_tokens = min(int(self.tokenizer.model_max_length), positions)
        self.hidden_size = sum(int(tower.model.config.hidden_size) for tower in self.towers)
        self.pooled_size = int(self.towers[-1].model.config.projection_dim) if is_xl else 0

    def with_adapter(self, file: Path) -> "TextEncoder":
        """The encoder with a LoRA adapter in it, on torch; itself where the adapter leaves the text alone.

        Raises:
            WeightsError: it is not an adapter of this encoder.
        """
        changes = [read_change(file, tower.part) for tower in self.towers]
        if not any(changes):
            return self
        changed = copy.copy(self)
        changed.towers = [
            replace(tower, model=adapted(tower.model, change, str(file)))
            for tower, change in zip(self.towers, changes, strict=True)
        ]
        changed.model = changed.towers[0].model
        changed.forward = Forward("encode_text", changed.hidden_states, torch_rows(self.device))
        return changed

    def encode(self, texts: list[str]) -> EncodedTexts:
        """The conditioning of each text, a forward for each."""
        tokens = self.tokenize(texts)
        results = [self.forward.run(*row) for row in split(tokens.ids, 1)] if tokens.encoded else []
        return self.encoded(tokens, concatenated(results) if results else ())

    def tokenize(self, texts: list[str]) -> Tokens:
        """The forward's inputs. One thread at a time: tokenizers keep padding and truncation as state."""
        encoded = [index for index, text in enumerate(texts) if text or not self.null_is_zero]
        ids = (
            torch.cat([tower.token_ids(texts[index], self.max_tokens) for index in encoded or [0]])
            for tower in self.towers
        )
        cut = [
            max(0, len(self.tokenizer(text, truncation=False)["input_ids"]) - self.max_tokens)
            for text in texts
        ]
        return Tokens(tuple(ids), encoded, cut)

    def encoded(self, tokens: Tokens, results: Tensors) -> EncodedTexts:
        """The conditioning of all texts; results: the forward's, for the texts that are encoded."""
        count = len(tokens.num_cut)
        if len(tokens.encoded) < count:  # the others are null text, and zeros
            shapes = (self.max_tokens, self.hidden_size), (self.pooled_size,)
            whole = tuple(torch.zeros(count, *shape) for shape in shapes)
            for tensor, rows in zip(whole, results, strict=False):
                tensor[tokens.encoded] = rows
            results = whole
        return EncodedTexts(results[0], tokens.num_cut, results[1] if self.pooled_size else None)

    @torch.inference_mode()
    def hidden_states(self, *token_ids: torch.Tensor) -> Tensors:
        """Each tower's token ids [rows, max_tokens] to hidden states [rows, max_tokens, hidden_size].

        The last ones, or of SDXL the ones before, with pooled embeddings [rows, pooled_size]. On the CPU.
        """
        if not self.pooled_size:
            return (self.model(token_ids[0].to(self.device))[0].cpu(),)
        outputs = [
            tower.model(ids.to(self.device), output_hidden_states=True)
            for tower, ids in zip(self.towers, token_ids, strict=True)
        ]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return states.cpu(), outputs[-1].text_embeds.cpu()

    def words(self, texts: list[str]) -> list[list[Word]]:
        """The words of each text and their tokens; cut ones are left out."""
        return [words_of(self.tokenizer, text, self.max_tokens) for text in texts]


def _tower(family: Path, suffix: str, kind: Any, device: torch.device) -> Tower:
    part = f"text_encoder{suffix}"
    weights = check_part(family, part)
    tokenizer: Any = CLIPTokenizer.from_pretrained(part_of(family, f"tokenizer{suffix}"))
    model: Any = kind.from_pretrained(
        family / part, use_safetensors=True, variant=weights.variant, dtype=torch.float32
    )
    return Tower(part, tokenizer, model.to(device).eval().requires_grad_(False))


class JointEncoder:
    """CLIP's joint space, by open_clip; float64 to check gradients by."""

    def __init__(self, source: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """source: as common.clip.clip_source has it."""
        model, self.preprocess, self.tokenizer = load_clip(source)
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        size = self.model.visual.image_size
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.mean, self.std = (
            torch.tensor(values, device=device, dtype=dtype).view(3, 1, 1)
            for values in (self.model.visual.image_mean, self.model.visual.image_std)
        )
        self.traced_features = Traced(self.features_of)
        self.text_forward = Forward("embed_text", self.encode_tokens, torch_rows(device))
        self.image_forward = Forward("embed_image", self.encode_pixels, torch_rows(device))
        with torch.inference_mode():
            self.embedding_size = int(self.embed_texts(["warm"]).shape[-1])

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors [texts, embedding_size]."""
        return self.text_forward.run(self.tokenize(texts))[0]

    def embed_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Unit vectors [images, embedding_size]."""
        return self.image_forward.run(self.pixels(images))[0]

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """What text_forward takes."""
        tokens: torch.Tensor = self.tokenizer(texts)
        return tokens

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        """What image_forward takes."""
        return torch.stack([self.preprocess(image) for image in images])

    @torch.inference_mode()
    def encode_tokens(self, tokens: torch.Tensor) -> Tensors:
        """Token ids [texts, context length] to unit vectors [texts, embedding_size], on the CPU."""
        return (self.model.encode_text(tokens.to(self.device), normalize=True).cpu(),)

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> Tensors:
        """Preprocessed images [images, 3, image_size, image_size] to unit vectors, on the CPU."""
        return (self.model.encode_image(pixels.to(self.device), normalize=True).cpu(),)

    def features_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB [images, 3, image_size, image_size] in [-1, 1] to unit vectors; differentiable."""
        features: torch.Tensor = self.model.encode_image(
            ((pixels + 1) / 2 - self.mean) / self.std, normalize=True
        )
        return features
