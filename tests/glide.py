"""GLIDE's noised CLIP as it was published: names and shapes of the two files, and the forward passes."""

from pathlib import Path

import torch
from torch.nn import functional as F

Keys = dict[str, torch.Tensor]
HEAD = 64
EMBED = 48


def published(
    tower: str, width: int, layers: int, device: str = "cpu", *, patch: int = 16, vocabulary: int = 49408
) -> Keys:
    """Random weights of clip_image_enc.pt ("image") or clip_text_enc.pt ("text")."""
    generator = torch.Generator().manual_seed(len(tower))
    keys: Keys = {}

    def put(name: str, *shape: int, scale: float = 1.0) -> None:
        if device == "meta":
            keys[name] = torch.empty(shape, device="meta")
        else:
            keys[name] = torch.randn(shape, generator=generator) * scale

    def norm(name: str) -> None:
        put(f"{name}.g", width)
        put(f"{name}.b", width, scale=0.1)

    def affine(name: str, n_in: int, n_out: int, bias: bool = True) -> None:
        put(f"{name}.w", n_out, n_in, scale=n_in**-0.5)
        if bias:
            put(f"{name}.b", n_out, scale=0.1)

    if tower == "image":
        put("blocks.input.w_t", 1000, width)
        put("blocks.input.patch_proj", width, 3, patch, patch, scale=patch**-1.0)
        put("blocks.input.w_pos", 1 + (64 // patch) ** 2, width)
        norm("blocks.input.ln")
    else:
        put("blocks.input.w_voc", vocabulary, width)
        put("blocks.input.w_pos", 77, width)
    for index in range(layers):
        block = f"blocks.block_{index}"
        norm(f"{block}.f_attn.ln")
        for name in ("f_q", "f_k", "f_v", "f_c"):
            affine(f"{block}.f_attn.{name}", width, width, bias=name != "f_k")
        norm(f"{block}.f_mlp.ln")
        affine(f"{block}.f_mlp.f_1", width, 4 * width)
        affine(f"{block}.f_mlp.f_2", 4 * width, width)
    norm("blocks.output.ln")
    affine("blocks.output.f", width, 512 if device == "meta" else EMBED, bias=False)
    return keys


class Glide:
    """The forward passes in float64, on the published names."""

    def __init__(self, image: Keys, text: Keys) -> None:
        self.image, self.text = ({name: t.double() for name, t in keys.items()} for keys in (image, text))

    def image_embeddings(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """f(x_t, t) for x_t [n, 3, 64, 64] in -1 to 1 and whole t [n]."""
        keys = self.image
        mean = torch.tensor([122.77093945, 116.74601272, 104.09373519], dtype=torch.float64).view(3, 1, 1)
        std = torch.tensor([68.50053285, 66.63215831, 70.32316309], dtype=torch.float64).view(3, 1, 1)
        kernel = keys["blocks.input.patch_proj"]
        patches = F.conv2d(((x + 1) * 127.5 - mean) / std, kernel, stride=kernel.shape[-1])
        tokens = torch.cat([keys["blocks.input.w_t"][t][:, None], patches.flatten(2).mT], 1)
        tokens = _norm(keys, "blocks.input.ln", tokens + keys["blocks.input.w_pos"])
        visible = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        return _unit(keys, _blocks(keys, tokens, visible)[:, 0])

    def text_embeddings(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """g(c) for padded tokens [n, 77] and how many of them are the text's, start and end included."""
        keys = self.text
        x = keys["blocks.input.w_voc"][tokens] + keys["blocks.input.w_pos"]
        visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return _unit(keys, _blocks(keys, x, visible)[torch.arange(len(x)), lengths - 1])


def save_published(folder: Path) -> Glide:
    """Writes image.pt and text.pt, small; returns their forward passes."""
    image, text = published("image", 128, 2), published("text", 64, 3)
    torch.save(image, folder / "image.pt")
    torch.save(text, folder / "text.pt")
    return Glide(image, text)


def _affine(keys: Keys, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ keys[f"{name}.w"].T + keys.get(f"{name}.b", torch.zeros(()))


def _norm(keys: Keys, name: str, x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * keys[f"{name}.g"] + keys[f"{name}.b"]


def _blocks(keys: Keys, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    index = 0
    while f"blocks.block_{index}.f_attn.ln.g" in keys:
        attention, mlp = f"blocks.block_{index}.f_attn", f"blocks.block_{index}.f_mlp"
        y = _norm(keys, f"{attention}.ln", x)
        heads = []
        for head in range(x.shape[-1] // HEAD):
            part = slice(head * HEAD, (head + 1) * HEAD)
            q, k, v = (_affine(keys, f"{attention}.f_{name}", y)[..., part] for name in "qkv")
            logits = torch.einsum("bcd,bkd->bck", q, k) / HEAD**0.5
            weights = logits.masked_fill(~visible, -1e10).softmax(-1)
            heads.append(weights @ v)
        x = x + _affine(keys, f"{attention}.f_c", torch.cat(heads, -1))
        y = _affine(keys, f"{mlp}.f_1", _norm(keys, f"{mlp}.ln", x))
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = x + _affine(keys, f"{mlp}.f_2", y)
        index += 1
    return x


def _unit(keys: Keys, x: torch.Tensor) -> torch.Tensor:
    z = _affine(keys, "blocks.output.f", _norm(keys, "blocks.output.ln", x))
    return z / z.norm(dim=-1, keepdim=True)
