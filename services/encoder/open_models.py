"""What the encoder serves by the Open Inference Protocol: CLIP's texts and images."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.common.inference_tensors import Model, Tensor
from sfumato.encoder.config import EncoderSettings
from sfumato.encoder.engine_torch import JointEncoder, TextEncoder
from sfumato.encoder.rows import EncoderRows

CheckedTexts = Callable[[Sequence[str]], list[str]]


def open_models(
    encoder: TextEncoder,
    joint: JointEncoder | None,
    rows: EncoderRows,
    settings: EncoderSettings,
    checked: CheckedTexts,
) -> list[Model]:
    """The table; without a joint space, the conditioning alone.

    Args:
        encoder, joint: the models.
        rows: on their thread.
        settings: for limits.
        checked: the service's check of texts.
    """

    async def clip_text(wanted: Sequence[str], texts: list[bytes]) -> dict[str, torch.Tensor]:
        words = checked([decoded_text(text) for text in texts])
        found: dict[str, torch.Tensor] = {}
        if not {"prompt_embeds", "pooled_prompt_embeds", "num_truncated_tokens"}.isdisjoint(wanted):
            encoded = await rows.encode(encoder, words)
            found["prompt_embeds"] = encoded.prompt_embeds
            found["num_truncated_tokens"] = torch.tensor(encoded.num_cut)
            if encoded.pooled_prompt_embeds is not None:
                found["pooled_prompt_embeds"] = encoded.pooled_prompt_embeds
        if "embeddings" in wanted and joint is not None:
            found["embeddings"] = await rows.embed_texts(joint, words)
        return found

    hidden = (-1, encoder.max_tokens, encoder.hidden_size)
    outputs = [Tensor("prompt_embeds", "FP32", hidden), Tensor("num_truncated_tokens", "INT64", (-1,))]
    if encoder.pooled_size:
        outputs.append(Tensor("pooled_prompt_embeds", "FP32", (-1, encoder.pooled_size)))
    text = Model(
        name="clip_text",
        inputs=[Tensor("texts", "BYTES", (-1,), settings.max_texts)],
        outputs=outputs,
        infer=clip_text,
    )
    if joint is None:
        return [text]
    embeddings = Tensor("embeddings", "FP32", (-1, joint.embedding_size))
    return [
        Model(text.name, text.inputs, [*text.outputs, embeddings], clip_text),
        _clip_image(joint, rows, settings, embeddings),
    ]


def _clip_image(
    joint: JointEncoder, rows: EncoderRows, settings: EncoderSettings, embeddings: Tensor
) -> Model:
    async def clip_image(wanted: Sequence[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
        embeds = rows.embed_images(joint, lambda: [Image.fromarray(image.numpy()) for image in images])
        return {"embeddings": await embeds}

    limit = 3 * settings.max_image_pixels
    return Model(
        name="clip_image",
        inputs=[Tensor("images", "UINT8", (-1, -1, -1, 3), limit)],
        outputs=[embeddings],
        infer=clip_image,
        max_batch_size=settings.max_texts,
    )


def decoded_text(text: bytes) -> str:
    """UTF-8 to text."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument("texts", "UTF-8", "bytes that are not") from error
