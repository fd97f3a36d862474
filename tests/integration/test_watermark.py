"""A decoder that puts an invisible mark into images, asked over gRPC."""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from sfumato_protos.v1 import decoder_pb2, decoder_pb2_grpc

from sfumato.common.tensors import to_message
from sfumato_client.stack import Service, free_port
from tests.editor_process import running
from tests.watermark_library import watermark_library

MARK = "sfumato!"


def decoder_service(family: Path, folder: Path, **environment: str) -> Service:
    port = free_port()
    own = {
        "SFUMATO_DECODER_PORT": str(port), "SFUMATO_DECODER_FAMILY": str(family),
        "SFUMATO_DECODER_ENGINE": "torch", "SFUMATO_DECODER_NUM_THREADS": "1",
    }  # fmt: skip
    return Service("decoder", port, own | environment, folder / f"decoder-{port}.log")


@pytest.fixture(scope="module")
def library() -> Path:
    return watermark_library()


@pytest.fixture(scope="module")
def decoders(
    emoji_family: Path, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Service]]:
    """One that marks, one that does not."""
    folder = tmp_path_factory.mktemp("watermark")
    path = f"{library}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    marking = decoder_service(emoji_family, folder, SFUMATO_DECODER_WATERMARK=MARK, PYTHONPATH=path)
    plain = decoder_service(emoji_family, folder)
    with running(marking, plain):
        yield marking, plain


def decoded(service: Service, side: int, image_format: str = "PNG") -> bytes:
    """The image of latents of `side` x `side`, eight times as large."""
    coarse = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    latents = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")  # smooth, as images are
    wire_format = decoder_pb2.ImageFormat.Value(f"IMAGE_FORMAT_{image_format}")
    request = decoder_pb2.DecodeRequest(latents=to_message(latents), image_format=wire_format)
    with grpc.insecure_channel(service.target, options=[("grpc.max_receive_message_length", -1)]) as channel:
        stub: Any = decoder_pb2_grpc.DecoderServiceStub(channel)
        image: bytes = stub.Decode(request, timeout=60).image
    return image


def mark_in(data: bytes, library: Path) -> bytes:
    """What the library reads, as whoever gets the file would."""
    sys.path.append(str(library))
    try:
        from imwatermark import WatermarkDecoder  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(library))
    bgr = np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(data)))[..., ::-1])
    mark: bytes = WatermarkDecoder("bytes", 8 * len(MARK)).decode(bgr, "dwtDctSvd")
    return mark


def test_a_decoder_that_marks_gives_nothing_to_make_previews_without_it(
    decoders: tuple[Service, Service],
) -> None:
    given = []
    for service in decoders:
        with grpc.insecure_channel(service.target) as channel:
            stub: Any = decoder_pb2_grpc.DecoderServiceStub(channel)
            info = stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest(), timeout=60)
        given.append(info.HasField("preview_projection"))
    assert given == [False, True]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_the_mark_is_read_back_and_hardly_seen(
    decoders: tuple[Service, Service], library: Path, image_format: str
) -> None:
    marked, plain = (decoded(service, 32, image_format) for service in decoders)
    assert mark_in(marked, library) == MARK.encode()
    assert mark_in(plain, library) != MARK.encode()
    if image_format == "PNG":
        a, b = (np.asarray(Image.open(io.BytesIO(data)), float) for data in (marked, plain))
        assert 10 * np.log10(255**2 / np.mean((a - b) ** 2)) > 35


def test_an_image_too_small_for_the_mark_is_refused_not_left_without(
    decoders: tuple[Service, Service],
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        decoded(decoders[0], 8)
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
    assert "256x256" in error.value.details()  # type: ignore[attr-defined]
    assert Image.open(io.BytesIO(decoded(decoders[1], 8))).size == (64, 64)


def test_without_the_library_the_decoder_says_what_to_install(emoji_family: Path, tmp_path: Path) -> None:
    decoder = decoder_service(emoji_family, tmp_path, SFUMATO_DECODER_WATERMARK=MARK)
    decoder.start()
    assert decoder.process.wait(60) != 0
    assert "pip install --no-deps invisible-watermark" in decoder.last_lines()
