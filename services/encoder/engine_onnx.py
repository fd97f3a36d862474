"""The text encoder as a graph, in ONNX Runtime or on Triton.

The joint space, whose gradients are asked for, stays on torch.
"""

from pathlib import Path
from typing import Any

import structlog
import torch

from sfumato.common.engines import choose_session
from sfumato.common.forwards import Forward
from sfumato.common.onnx_graph import Graph
from sfumato.encoder.engine_torch import TextEncoder

log = structlog.get_logger()

MAX_ROWS = 8  # 0.6 to 0.8 of their time one by one, of a small encoder on two cores


def use_engine(
    encoder: TextEncoder, engine: str, cache: Path, num_threads: int, triton_url: str = ""
) -> None:
    """Gives the encoder its graph's forward, unless choose_session says torch.

    Args:
        encoder: the model in torch.
        engine, cache, triton_url: as choose_session has them.
        num_threads: CPU threads of one run.
    """
    if encoder.pooled_size:
        # Two outputs, of two models or of the refiner's one, once a request.
        log.info("SDXL's text encoders run on torch, whatever the engine", engine=engine)
        return
    session = choose_session(text_graph(encoder), engine, cache, encoder.device, num_threads, triton_url)
    if session is not None:
        # A Triton server puts rows together by itself.
        max_rows = 1 if engine == "triton" else MAX_ROWS
        encoder.forward = Forward("encode_text", lambda ids: (session.run(ids),), max_rows)


def text_graph(encoder: TextEncoder) -> Graph:
    """Last hidden states [rows, max_tokens, hidden_size] of token ids [rows, max_tokens]."""

    def token_ids(rows: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        vocabulary = int(encoder.model.config.vocab_size)
        ids = torch.randint(0, vocabulary, (rows, encoder.max_tokens), generator=generator)
        ids[:, -1] = encoder.tokenizer.eos_token_id
        return ids

    return Graph(
        name="text_encoder",
        module=_HiddenStates(encoder.model),
        weights=encoder.weights,
        inputs={"token_ids": token_ids(2, 0)},
        dynamic_axes={"token_ids": {0: "rows"}, "output": {0: "rows"}},
        checks=[(token_ids(1, 1),), (token_ids(3, 2),)],
    )


class _HiddenStates(torch.nn.Module):
    """The text encoder, giving the last hidden states alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: torch.Tensor) -> Any:
        return self.model(token_ids)[0]
