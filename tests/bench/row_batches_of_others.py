"""What company saves on the encoder's and the decoder's one thread, whose forwards have all cores.

One forward of n rows against n forwards of one row, in turns; under 1 company is faster. With it, whether
each row has the bits that it has alone.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sfumato.common.clip import clip_source
from sfumato.common.forwards import concatenated, split
from sfumato.common.onnx_graph import open_graph
from sfumato.decoder.engine_onnx import decoder_graph
from sfumato.decoder.engine_torch import TorchAutoencoder
from sfumato.encoder.engine_onnx import text_graph
from sfumato.encoder.engine_torch import JointEncoder, TextEncoder

CPU = torch.device("cpu")
ROWS = (2, 4, 8, 16)
LATENTS = 8  # side


def others(family: Path, cache: Path, cores: int, repeats: int) -> list[dict[str, Any]]:
    """Each forward at each number of rows: together_over_apart, same_bits."""
    torch.set_num_threads(cores)
    vae, text = TorchAutoencoder(family, CPU), TextEncoder(family, CPU)
    joint = JointEncoder(clip_source(family, "") or "", CPU)
    # The decoder's own graph takes one row: this asks whether it should take more.
    rows = {0: "rows", 2: "h", 3: "w"}
    graph = replace(decoder_graph(vae), name="decoder-rows", dynamic_axes={"latents": rows, "output": rows})
    decode, encode_text = (open_graph(one, cache, CPU, cores) for one in (graph, text_graph(text)))
    pixels = LATENTS * vae.vae_scale_factor
    ids, tokens = text.tokenize(["a cat"]).ids[0], joint.tokenize(["a cat"])
    forwards: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
        "decode, onnxruntime": (lambda x: (decode.run(x),), torch.zeros(1, vae.latent_channels, 8, 8)),
        "encode_text, onnxruntime": (lambda x: (encode_text.run(x),), ids),
        "encode_image, torch": (vae.encode, torch.zeros(1, 3, pixels, pixels)),
        "embed_text, torch": (joint.encode_tokens, tokens),
        "embed_image, torch": (joint.encode_pixels, torch.zeros(1, 3, joint.image_size, joint.image_size)),
    }
    return [
        {"work": work, "rows": n, **_measured(run, row, n, repeats)}
        for work, (run, row) in forwards.items()
        for n in ROWS
    ]


def _measured(run: Callable[..., Any], row: torch.Tensor, n: int, repeats: int) -> dict[str, Any]:
    many = row.repeat(n, *[1] * (row.dim() - 1))
    if many.is_floating_point():
        many = many + torch.randn(many.shape, generator=torch.Generator().manual_seed(n))
    rows = split((many,), 1)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(2 + repeats):
        for way, found in zip((lambda: [run(*one) for one in rows], lambda: run(many)), times, strict=True):
            start = time.perf_counter()
            way()
            found.append(time.perf_counter() - start)
    apart, together = (statistics.median(found[2:]) for found in times)
    same = all(map(torch.equal, concatenated([run(*one) for one in rows]), run(many)))
    return {"together_over_apart": round(together / apart, 3), "same_bits_as_alone": same}
