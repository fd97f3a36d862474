"""Stage 2: CLIP from scratch (Radford et al. 2021), and the judge: the same with another seed."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch.nn import functional as F

from sfumato.trainer.batches import stream
from sfumato.trainer.loop import Schedule, train
from sfumato.trainer.tokens import CONTEXT, tokenizer_of, vocabulary_size

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_WIDTH = 192


def model_config(vocabulary: int) -> dict[str, Any]:
    """open_clip's model_cfg: ViT of patch 8 on 64 pixels, a small text tower."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 5, "width": 160, "head_width": 32, "patch_size": 8},
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": vocabulary, "width": TEXT_WIDTH, "heads": 6, "layers": 4,
        },
    }  # fmt: skip


def make_clip(vocabulary: int) -> Any:
    """Untrained, in open_clip's layout."""
    return open_clip.CLIP(**model_config(vocabulary))


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as CLIP takes them."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def contrastive_loss(model: Any, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over rows and columns of exp(logit_scale) I T^T."""
    image_features = model.encode_image(normalised(images), normalize=True)
    text_features = model.encode_text(tokens, normalize=True)
    image_features, text_features = image_features.float(), text_features.float()
    logits = model.logit_scale.clamp(max=4.6052).exp() * image_features @ text_features.T
    labels = torch.arange(len(images))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@torch.inference_mode()
def recall(model: Any, images: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    """Image to text retrieval among all given pairs: recall@1 and recall@5."""
    image_features = model.encode_image(normalised(images), normalize=True)
    text_features = model.encode_text(tokens, normalize=True)
    ranked = (image_features @ text_features.T).argsort(1, descending=True)
    hits = ranked == torch.arange(len(images))[:, None]
    return {f"recall@{k}": float(hits[:, :k].any(1).float().mean()) for k in (1, 5)}


def train_clip(data: Path, tokenizer: Path, path: Path, schedule: Schedule, seed: int, batch: int) -> None:
    """Trains, or goes on training, and prints held-out recall at each checkpoint."""
    torch.manual_seed(seed)
    model = make_clip(vocabulary_size(tokenizer))
    encode = tokenizer_of(tokenizer)
    images, captions = next(iter(stream(data, 10_001, 256, 0, 1, workers=0, held_out=True)))
    tokens = encode(captions)
    train(
        "clip", model, path, schedule,
        lambda first, rank: stream(data, (seed, rank), batch, first, schedule.num_steps),
        lambda item, step: contrastive_loss(model, item[0], encode(item[1])),
        lambda step: f"clip step {step}: held-out, among 256: {json.dumps(recall(model, images, tokens))}",
    )  # fmt: skip
