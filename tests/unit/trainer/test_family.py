"""The shipped family: small enough, whole, and one text tower in both layouts."""

from pathlib import Path

import open_clip
import torch
from diffusers import StableDiffusionPipeline

from sfumato.trainer.export import text_encoder_from
from sfumato.trainer.tokens import tokenizer_of, vocabulary_size

TEXTS = ["a cat", "a dog left of a star on a white background", ""]


def test_it_fits_the_repository(emoji_family: Path) -> None:
    sizes = [path.stat().st_size for path in emoji_family.rglob("*") if path.is_file()]
    assert sum(sizes) <= 80 * 2**20
    assert max(sizes) <= 40 * 2**20
    assert not [path for path in emoji_family.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_a_text_encoder_starts_as_clips_text_tower(emoji_family: Path) -> None:
    tokens = tokenizer_of(emoji_family / "tokenizer")(TEXTS)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{emoji_family / 'clip'}", weights_only=True)
    model = model.float().eval()
    text_encoder = text_encoder_from(model.state_dict(), vocabulary_size(emoji_family / "tokenizer"))
    with torch.inference_mode():
        embedded = model.token_embedding(tokens) + model.positional_embedding
        expected = model.ln_final(model.transformer(embedded, attn_mask=model.attn_mask))
        assert torch.allclose(text_encoder(tokens)[0], expected, atol=1e-5)


def test_diffusers_makes_an_image_of_it(emoji_family: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(emoji_family, torch_dtype=torch.float32)
    image = pipeline("a cat on a blue background", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
