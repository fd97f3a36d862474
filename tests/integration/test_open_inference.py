"""tritonclient, unmodified, against encoder, denoiser and decoder: the bits of their own contract."""

import asyncio
import io
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image
from sfumato_protos.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    denoiser_pb2,
    denoiser_pb2_grpc,
    encoder_pb2,
    encoder_pb2_grpc,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from sfumato.common.tensors import from_message, to_message
from sfumato_client.stack import Service, Stack
from tests.tiny_family import CONTEXT, WIDTH

MODELS = {
    "encoder": ["clip_text", "clip_image"],
    "denoiser": ["unet"],
    "decoder": ["vae_decode", "vae_encode"],
}
PLACES = [(service, model) for service, models in MODELS.items() for model in models]
README = Path(__file__).parents[2] / "README.md"
EACH_SERVICE = pytest.mark.parametrize("name", MODELS)
EACH_MODEL = pytest.mark.parametrize(("name", "model"), PLACES)
TIMESTEP = np.array([[500.5], [3.0]], np.float32)


def service_of(stack: Stack, name: str) -> Service:
    return stack.denoisers[0] if name == "denoiser" else getattr(stack, name)


@pytest.fixture(scope="module")
def clients(tiny_stack: Stack) -> Iterator[dict[str, Any]]:
    """A client of each service."""
    opened = {name: triton.InferenceServerClient(service_of(tiny_stack, name).target) for name in MODELS}
    yield opened
    for client in opened.values():
        client.close()


@pytest.fixture(scope="module")
def channels(tiny_stack: Stack) -> Iterator[dict[str, grpc.Channel]]:
    """A channel to each service, for its own contract and for messages that tritonclient would not send."""
    opened = {name: grpc.insecure_channel(service_of(tiny_stack, name).target) for name in MODELS}
    yield opened
    for channel in opened.values():
        channel.close()


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def png(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def arrays(model: str) -> dict[str, np.ndarray[Any, Any]]:
    """Good inputs of each model, two rows."""
    return {
        "clip_text": {"texts": np.array([b"a cat", "ein Fuchs für zwölf".encode()], object)},
        "clip_image": {"images": pixels(2, 40, 48, 3)},
        "unet": {
            "latents": noise(2, 4, 8, 8), "timestep": TIMESTEP, "prompt_embeds": noise(2, CONTEXT, WIDTH),
        },
        "vae_decode": {"latents": noise(2, 4, 8, 6)},
        "vae_encode": {"images": pixels(2, 64, 48, 3)},
    }[model]  # fmt: skip


def inputs(model: str, **changed: Any) -> list[Any]:
    """The same as tritonclient has them."""
    made = []
    for name, array in {**arrays(model), **changed}.items():
        tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        made.append(tensor.set_data_from_numpy(array))
    return made


def own_contract(channels: dict[str, grpc.Channel], model: str) -> dict[str, np.ndarray[Any, Any]]:
    """What the service's own contract gives for the same inputs."""
    given = arrays(model)
    encoder: Any = encoder_pb2_grpc.EncoderServiceStub(channels["encoder"])
    decoder: Any = decoder_pb2_grpc.DecoderServiceStub(channels["decoder"])
    if model == "clip_text":
        texts = [text.decode() for text in given["texts"]]
        encoded = encoder.EncodeText(encoder_pb2.EncodeTextRequest(texts=texts))
        embedded = encoder.EmbedText(encoder_pb2.EmbedTextRequest(texts=texts))
        return {
            "prompt_embeds": array_of(encoded.prompt_embeds),
            "num_truncated_tokens": np.array(encoded.num_truncated_tokens),
            "embeddings": array_of(embedded.embeddings),
        }
    if model == "clip_image":
        request = encoder_pb2.EmbedImageRequest(images=[png(image) for image in given["images"]])
        return {"embeddings": array_of(encoder.EmbedImage(request).embeddings)}
    if model == "unet":
        rows = [denoised(channels["denoiser"], *row) for row in zip(*given.values(), strict=True)]
        return {"noise_pred": np.concatenate(rows)}
    if model == "vae_decode":
        files = [
            decoder.Decode(decoder_pb2.DecodeRequest(latents=message_of(row[None]))).image
            for row in given["latents"]
        ]
        return {"images": np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])}
    answers = [
        decoder.Encode(decoder_pb2.EncodeRequest(image=png(image), width=48, height=64))
        for image in given["images"]
    ]
    return {
        name: np.concatenate([array_of(getattr(answer, name)) for answer in answers])
        for name in ("mean", "std")
    }


def denoised(
    channel: grpc.Channel, latents: np.ndarray[Any, Any], timestep: Any, embeds: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
    step = denoiser_pb2.DenoiseStep(latents=message_of(latents[None]), timestep=float(timestep[0]))
    opened = denoiser_pb2.OpenTrajectory(prompt_embeds=message_of(embeds[None]))
    request = denoiser_pb2.DenoiseRequest
    (answer,) = stub.Denoise(iter([request(open=opened), request(step=step)]))
    return array_of(answer.noise_pred)


def message_of(array: np.ndarray[Any, Any]) -> Any:
    import torch

    return to_message(torch.from_numpy(np.array(array)))


def array_of(message: Any) -> np.ndarray[Any, Any]:
    return from_message(message, "", [None] * len(message.shape), 2**24).numpy()


@EACH_SERVICE
def test_a_loaded_service_is_live_and_ready_and_describes_itself(clients: dict[str, Any], name: str) -> None:
    client = clients[name]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert all(client.is_model_ready(model) for model in MODELS[name])
    assert client.is_model_ready(MODELS[name][0], "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready(MODELS[name][0], "2")
    metadata = client.get_server_metadata()
    assert metadata.name == f"sfumato.v1.{name.capitalize()}Service"
    assert list(metadata.extensions) == ["model_configuration"]


@EACH_MODEL
def test_metadata_and_configuration_fit_what_is_taken_and_given(
    clients: dict[str, Any], name: str, model: str
) -> None:
    metadata = clients[name].get_model_metadata(model)
    config = clients[name].get_model_config(model).config
    result = clients[name].infer(model, inputs(model))
    given = {**arrays(model), **{o.name: result.as_numpy(o.name) for o in metadata.outputs}}
    batch = 1 if config.max_batch_size else 0
    for described, configured in zip(
        [*metadata.inputs, *metadata.outputs], [*config.input, *config.output], strict=True
    ):
        array = given[described.name]
        assert described.datatype == np_to_triton_dtype(array.dtype)
        assert len(described.shape) == array.ndim
        assert all(want in (-1, size) for want, size in zip(described.shape, array.shape, strict=True))
        assert configured.name == described.name
        assert list(configured.dims) == list(described.shape)[batch:]


@EACH_MODEL
def test_infer_gives_the_bits_of_the_own_contract(
    clients: dict[str, Any], channels: dict[str, grpc.Channel], name: str, model: str
) -> None:
    result = clients[name].infer(model, inputs(model), request_id="seven")
    expected = own_contract(channels, model)
    assert {output.name for output in result.get_response().outputs} == set(expected)
    assert result.get_response().id == "seven"
    for output, array in expected.items():
        np.testing.assert_array_equal(result.as_numpy(output), array)


@EACH_MODEL
def test_a_stream_gives_what_infer_gives_in_the_order_asked(
    clients: dict[str, Any], name: str, model: str
) -> None:
    client, answers = clients[name], queue.Queue[Any]()
    first = {key: array[:1] for key, array in arrays(model).items()}
    expected = [client.infer(model, inputs(model, **changed)) for changed in ({}, first)]
    client.start_stream(lambda result, error: answers.put(error or result))
    for index, changed in enumerate(({}, first)):
        client.async_stream_infer(
            model, inputs(model, **changed), request_id=str(index), enable_empty_final_response=index == 1
        )
    streamed = [answers.get(timeout=60) for _ in range(2)]
    client.stop_stream()
    for index, (got, want) in enumerate(zip(streamed, expected, strict=True)):
        response = got.get_response()
        assert response.id == str(index)
        assert response.parameters["triton_final_response"].bool_param == (index == 1)
        assert response.raw_output_contents == want.get_response().raw_output_contents


@EACH_SERVICE
async def test_the_asynchronous_client_is_answered_too(
    tiny_stack: Stack, clients: dict[str, Any], name: str
) -> None:
    model = MODELS[name][0]
    expected = clients[name].infer(model, inputs(model)).get_response().raw_output_contents

    async def requests() -> Any:
        for _ in range(2):
            yield {"model_name": model, "inputs": inputs(model)}

    async with tritonclient.grpc.aio.InferenceServerClient(service_of(tiny_stack, name).target) as client:
        assert await client.is_model_ready(model)
        together = await asyncio.gather(*(client.infer(model, inputs(model)) for _ in range(3)))
        assert all(result.get_response().raw_output_contents == expected for result in together)
        async for result, error in client.stream_infer(requests()):
            assert error is None
            assert result.get_response().raw_output_contents == expected


def test_callbacks_are_called(clients: dict[str, Any]) -> None:
    answers = queue.Queue[Any]()
    clients["denoiser"].async_infer(
        "unet", inputs("unet"), lambda result, error: answers.put(error or result)
    )
    assert answers.get(timeout=60).as_numpy("noise_pred").shape == (2, 4, 8, 8)


def test_the_outputs_asked_for_are_given_and_no_others(clients: dict[str, Any]) -> None:
    asked = [triton.InferRequestedOutput("embeddings")]
    result = clients["encoder"].infer("clip_text", inputs("clip_text"), outputs=asked)
    assert [output.name for output in result.get_response().outputs] == ["embeddings"]
    whole = clients["encoder"].infer("clip_text", inputs("clip_text"))
    np.testing.assert_array_equal(result.as_numpy("embeddings"), whole.as_numpy("embeddings"))
    asked = [triton.InferRequestedOutput(name) for name in ("std", "mean")]
    result = clients["decoder"].infer("vae_encode", inputs("vae_encode"), outputs=asked)
    assert [output.name for output in result.get_response().outputs] == ["std", "mean"]


def test_half_precision_is_taken(clients: dict[str, Any]) -> None:
    half = {name: array.astype(np.float16) for name, array in arrays("unet").items()}
    rounded = {name: array.astype(np.float32) for name, array in half.items()}
    got, expected = (clients["denoiser"].infer("unet", inputs("unet", **given)) for given in (half, rounded))
    np.testing.assert_array_equal(got.as_numpy("noise_pred"), expected.as_numpy("noise_pred"))


CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents", "BYTES": "bytes_contents"}


def with_contents(model: str) -> service_pb2.ModelInferRequest:
    """The request as clients send it that know no raw contents."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in arrays(model).items():
        tensor = request.inputs.add(name=name, shape=array.shape, datatype=np_to_triton_dtype(array.dtype))
        getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(array.ravel().tolist())
    return request


@EACH_MODEL
def test_contents_give_what_raw_contents_give(
    clients: dict[str, Any], channels: dict[str, grpc.Channel], name: str, model: str
) -> None:
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channels[name])
    expected = clients[name].infer(model, inputs(model)).get_response()
    assert stub.ModelInfer(with_contents(model)).raw_output_contents == expected.raw_output_contents


def refused(client: Any, model: str, given: list[Any], **options: Any) -> tuple[str, str]:
    """Status and message."""
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, given, **options)
    return error.value.status().removeprefix("StatusCode."), error.value.message()


BAD_INPUTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("unet", {"latents": noise(2, 4, 8)}, "INVALID_ARGUMENT", "latents.shape must be (any, 4, any, any)"),
    ("unet", {"latents": noise(2, 3, 8, 8)}, "INVALID_ARGUMENT", "is (2, 3, 8, 8)"),
    ("unet", {"latents": noise(2, 4, 0, 8)}, "INVALID_ARGUMENT", "latents.shape must be"),
    ("unet", {"latents": noise(2, 4, 8, 8).astype(np.float64)}, "INVALID_ARGUMENT", "FP16, but is FP64"),
    ("unet", {"latents": noise(2, 4, 8, 8) * np.nan}, "INVALID_ARGUMENT", "latents must be finite"),
    ("unet", {"timestep": TIMESTEP[:1]}, "INVALID_ARGUMENT", "of as many rows as latents, 2"),
    ("unet", {"timestep": TIMESTEP[:, 0]}, "INVALID_ARGUMENT", "timestep.shape must be (any, 1)"),
    ("unet", {"more": TIMESTEP}, "INVALID_ARGUMENT", "latents, timestep, prompt_embeds, each once"),
    ("unet", {"latents": noise(17, 4, 1, 1)}, "RESOURCE_EXHAUSTED", "at most 16 rows, but is 17"),
    ("clip_text", {"texts": np.array([b"a"] * 65, object)}, "RESOURCE_EXHAUSTED", "at most 64 elements"),
    ("clip_text", {"texts": np.array([b"a" * 1001], object)}, "INVALID_ARGUMENT", "at most 1000 characters"),
    ("clip_text", {"texts": np.array([b"\xff"], object)}, "INVALID_ARGUMENT", "texts must be UTF-8"),
    ("clip_text", {"texts": pixels(2)}, "INVALID_ARGUMENT", "texts.datatype must be BYTES, but is UINT8"),
    ("clip_image", {"images": pixels(1, 8, 8, 4)}, "INVALID_ARGUMENT", "(any, any, any, 3)"),
    ("vae_encode", {"images": pixels(1, 64, 50, 3)}, "INVALID_ARGUMENT", "multiples of 8"),
    ("vae_decode", {"latents": noise(2, 4, 100, 100)}, "RESOURCE_EXHAUSTED", "at most 65536 elements"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "changed", "code", "said"), BAD_INPUTS)
def test_wrong_inputs_are_refused_and_named(
    clients: dict[str, Any], model: str, changed: dict[str, Any], code: str, said: str
) -> None:
    client = clients[next(name for name, models in MODELS.items() if model in models)]
    status, message = refused(client, model, inputs(model, **changed))
    assert (status, said in message) == (code, True), message


def test_unknown_names_are_refused_and_the_known_ones_named(clients: dict[str, Any]) -> None:
    client, given = clients["decoder"], inputs("vae_decode")
    assert refused(client, "unet", given) == (
        "NOT_FOUND", "no model unet here; there are vae_decode, vae_encode, each in version 1",
    )  # fmt: skip
    assert refused(client, "vae_decode", given, model_version="3")[0] == "NOT_FOUND"
    status, message = refused(client, "vae_decode", given, outputs=[triton.InferRequestedOutput("image")])
    assert (status, message) == ("INVALID_ARGUMENT", "outputs must be of images, but is image")
    assert refused(client, "vae_decode", [])[0] == "INVALID_ARGUMENT"
    assert refused(client, "vae_decode", given * 2)[0] == "INVALID_ARGUMENT"
    for call in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException, match="no model other here"):
            call("other")


def test_shared_memory_and_what_else_is_not_there_is_refused(clients: dict[str, Any]) -> None:
    client, (latents,) = clients["decoder"], inputs("vae_decode")
    output = triton.InferRequestedOutput("images")
    output.set_shared_memory("region", 8)
    code, message = refused(client, "vae_decode", [latents], outputs=[output])
    assert (code, "shared memory is not offered" in message) == ("UNIMPLEMENTED", True)
    latents.set_shared_memory("region", 8)
    code, message = refused(client, "vae_decode", [latents])
    assert (code, "shared memory is not offered" in message) == ("UNIMPLEMENTED", True)
    for call in (client.get_system_shared_memory_status, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="is not offered here") as error:
            call()
        assert error.value.status() == "StatusCode.UNIMPLEMENTED"


def changed_raw(request: service_pb2.ModelInferRequest) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def missing_raw(request: service_pb2.ModelInferRequest) -> None:
    del request.raw_input_contents[-1]


def both(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.append(1.0)


def fewer_contents(request: service_pb2.ModelInferRequest) -> None:
    del request.raw_input_contents[:]
    request.CopyFrom(with_contents("unet"))
    del request.inputs[0].contents.fp32_contents[0]


def huge(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].shape[:] = [1, 4, 2**40, 2**40]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed_raw, "latents in raw_input_contents must be 2048 bytes"),
        (missing_raw, "raw_input_contents must be as many as inputs, 3"),
        (both, "latents.contents must be empty beside raw_input_contents"),
        (fewer_contents, "latents.contents.fp32_contents must be 512 for shape (2, 4, 8, 8), but is 511"),
        (huge, "latents.shape may be at most"),
    ],
)
def test_wrong_sizes_are_refused_with_the_right_one(
    channels: dict[str, grpc.Channel], damage: Any, said: str
) -> None:
    request = service_pb2.ModelInferRequest(model_name="unet")
    for tensor in inputs("unet"):
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    damage(request)
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channels["denoiser"])
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    error: Any = caught.value
    assert said in error.details()
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.metadata["field"]


@pytest.mark.parametrize("data", [b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xff", b"ab", b"\0\0\0\0" * 3])
def test_broken_byte_elements_are_refused(channels: dict[str, grpc.Channel], data: bytes) -> None:
    request = service_pb2.ModelInferRequest(model_name="clip_text", raw_input_contents=[data])
    request.inputs.add(name="texts", datatype="BYTES", shape=[2])
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channels["encoder"])
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "2 elements, each behind its length" in error.details()


def test_a_streams_error_is_a_message_of_it_and_the_stream_goes_on(clients: dict[str, Any]) -> None:
    client, answers = clients["denoiser"], queue.Queue[Any]()
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer("other", inputs("unet"))
    client.async_stream_infer("unet", inputs("unet", latents=noise(1, 1, 1)))
    client.async_stream_infer("unet", inputs("unet"))
    first, second, third = (answers.get(timeout=60) for _ in range(3))
    client.stop_stream()
    assert "no model other" in first.message()
    assert "latents.shape" in second.message()
    assert third.as_numpy("noise_pred").shape == (2, 4, 8, 8)


def test_a_streams_error_is_a_status_where_the_header_asks_for_it(clients: dict[str, Any]) -> None:
    client, answers = clients["denoiser"], queue.Queue[Any]()
    client.start_stream(
        lambda result, error: answers.put(error or result), headers={"triton_grpc_error": "true"}
    )
    client.async_stream_infer("other", inputs("unet"))
    error = answers.get(timeout=60)
    client.stop_stream()
    assert (error.status(), "no model other" in error.message()) == ("StatusCode.NOT_FOUND", True)


@EACH_SERVICE
def test_reflection_lists_the_protocol_beside_the_own_contract(
    channels: dict[str, grpc.Channel], name: str
) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channels[name])
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    listed = {service.name for service in answer.list_services_response.service}
    assert {"inference.GRPCInferenceService", f"sfumato.v1.{name.capitalize()}Service"} <= listed


def test_the_gateway_does_not_serve_it(tiny_stack: Stack) -> None:
    client = triton.InferenceServerClient(tiny_stack.target)
    with client, pytest.raises(InferenceServerException) as error:
        client.infer("unet", inputs("unet"))
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"


def test_the_readmes_example_works(tiny_stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    section = README.read_text().partition("### Open Inference Protocol")[2]
    example = section.partition("```python\n")[2].partition("```")[0]
    exec(example.replace("127.0.0.1:50052", tiny_stack.encoder.target), {})
    assert capsys.readouterr().out == f"(1, {CONTEXT}, {WIDTH})\n"
