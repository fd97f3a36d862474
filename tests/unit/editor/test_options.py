"""Options: read from messages, checked by range; the proto has what the methods have."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sfumato_protos.v1 import editor_pb2

from sfumato.common.errors import InvalidArgument, ResourceExhausted, SfumatoError
from sfumato.common.stylegan2 import StyleGAN2, save_stylegan2
from sfumato.editor.artifacts import ArtifactStore, result_path
from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import prepare
from sfumato.editor.messages import to_request
from sfumato.editor.method import Method
from sfumato.editor.options import from_json, resolve
from sfumato.editor.registry import METHODS
from sfumato.editor.styleclip_mapper import Mapper
from tests.editor_process import noisy_image

MESSAGES = editor_pb2.EditRequest.DESCRIPTOR.oneofs_by_name["method"].fields


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_methods_message_has_its_options(method: Method) -> None:
    """seed is common to all methods, and therefore a field of EditRequest."""
    message = next(field.message_type for field in MESSAGES if field.name.replace("_", "-") == method.name)
    options = {field.name: field for field in dataclasses.fields(method.options)}
    assert set(message.fields_by_name) == set(options) - {"seed"}
    for name, field in message.fields_by_name.items():
        choices = options[name].metadata.get("choices")
        if field.enum_type is not None:
            prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
            assert {v.name.removeprefix(prefix).lower() for v in field.enum_type.values[1:]} == set(choices)
        else:
            assert choices is None


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_options_survive_the_database(method: Method) -> None:
    import json

    required = {
        field.name: "x" for field in dataclasses.fields(method.options) if field.metadata.get("required")
    }
    given = {**required, "prompts": [{"text": "a", "weight": -0.5}]} if "prompts" in vars(method.options()) \
        else required  # fmt: skip
    options = resolve(method.options, given, EditorSettings())
    assert from_json(method.options, json.loads(json.dumps(dataclasses.asdict(options)))) == options


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A small file of a huge image."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


PRIOR = editor_pb2.DeepImagePrior


@pytest.mark.parametrize(
    ("field", "kind", "request_fields"),
    [
        ("image", ResourceExhausted, {"image": bomb(2_000)}),
        ("image", InvalidArgument, {"image": bomb(30_000)}),  # Pillow does not even open it
        ("image", InvalidArgument, {"image": png(1, 1)}),
        ("image", InvalidArgument, {"image": b"not an image"}),
        ("image", InvalidArgument, {"image": noisy_image(side=64)[:-200]}),
        ("mask", InvalidArgument, {"mask": png(32, 32)}),
        ("mask", InvalidArgument, {"image": png(32, 32), "mask": png(32, 16)}),
        ("prompts[0].text", InvalidArgument, {"deep_image_prior": PRIOR(prompts=[{"text": " "}])}),
        ("prompts[0].text", InvalidArgument, {"deep_image_prior": PRIOR(prompts=[{"text": "x" * 1001}])}),
        ("prompts[0].weight", InvalidArgument,
         {"deep_image_prior": PRIOR(prompts=[{"text": "x", "weight": math.nan}])}),
        ("prompts", ResourceExhausted, {"deep_image_prior": PRIOR(prompts=[{"text": "x"}] * 17)}),
        ("num_iterations", InvalidArgument, {"deep_image_prior": PRIOR(num_iterations=0)}),
        ("num_iterations", InvalidArgument, {"deep_image_prior": PRIOR(num_iterations=2**30)}),
        ("learning_rate", InvalidArgument, {"deep_image_prior": PRIOR(learning_rate=math.inf)}),
        ("distance", InvalidArgument, {"deep_image_prior": PRIOR(distance=77)}),  # type: ignore[arg-type]
        ("seed", InvalidArgument, {"seed": -1}),
        ("preview_interval_iterations", InvalidArgument, {"preview_interval_iterations": -1}),
        ("prompts", InvalidArgument, {}),
    ],
)  # fmt: skip
def test_a_bad_request_names_field_limit_and_value_and_keeps_nothing(
    tmp_path: Path, field: str, kind: type[SfumatoError], request_fields: dict[str, Any]
) -> None:
    message = editor_pb2.EditRequest(**{"deep_image_prior": PRIOR(), **request_fields})
    settings = EditorSettings(state_dir=tmp_path)
    store = ArtifactStore(settings.artifacts)
    name, request = to_request(message, "a")
    with pytest.raises(kind) as error:
        prepare(request, METHODS[name], store, settings)
    assert error.value.field == field
    assert error.value.limit
    assert error.value.value
    assert store.names() == []


DIRECTION = editor_pb2.StyleClipDirection


@pytest.mark.parametrize(
    ("field", "limit", "options"),
    [
        ("generator", "one of animals, faces", {"generator": "cars"}),
        ("generator", "one of animals, faces", {"generator": "../faces"}),
        ("neutral_prompt", "another text than prompt", {"neutral_prompt": " a cat "}),
    ],
)
def test_what_styleclip_cannot_do_is_refused_before_it_is_queued(
    tmp_path: Path, field: str, limit: str, options: dict[str, str]
) -> None:
    for name in ("faces", "animals"):
        (tmp_path / "family" / "stylegan2" / name).mkdir(parents=True)
    settings = EditorSettings(state_dir=tmp_path, family=tmp_path / "family")
    fields = {"prompt": "a cat", "neutral_prompt": "a face", **options}
    name, request = to_request(editor_pb2.EditRequest(styleclip_direction=DIRECTION(**fields)), "a")
    with pytest.raises(InvalidArgument) as error:
        prepare(request, METHODS[name], ArtifactStore(settings.artifacts), settings)
    assert (error.value.field, error.value.limit) == (field, limit)


def test_a_request_without_a_method_lists_them() -> None:
    with pytest.raises(InvalidArgument, match="vqgan_clip") as error:
        to_request(editor_pb2.EditRequest(), "a")
    assert error.value.field == "method"


def test_what_is_not_given_takes_the_methods_default(tmp_path: Path) -> None:
    message = editor_pb2.EditRequest(
        image=png(32, 32), seed=5, deep_image_prior=PRIOR(num_iterations=7, cutouts="CUTOUTS_CROPPED")
    )
    settings = EditorSettings(state_dir=tmp_path)
    name, request = to_request(message, "a")
    edit = prepare(request, METHODS[name], ArtifactStore(settings.artifacts), settings)
    assert edit.options["seed"] == 5
    assert (edit.options["num_iterations"], edit.options["cutouts"]) == (7, "cropped")
    assert (edit.options["learning_rate"], edit.options["distance"]) == (0.01, "spherical")


def test_a_seed_that_is_not_given_is_drawn(tmp_path: Path) -> None:
    settings = EditorSettings(state_dir=tmp_path)
    seeds = set()
    for _ in range(3):
        name, request = to_request(editor_pb2.EditRequest(image=png(32, 32), deep_image_prior=PRIOR()), "a")
        seeds.add(
            prepare(request, METHODS[name], ArtifactStore(settings.artifacts), settings).options["seed"]
        )
    assert len(seeds) == 3


def test_a_mapper_of_another_shape_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    settings = EditorSettings(state_dir=tmp_path, family=tmp_path / "family")
    for name, d in (("faces", 8), ("animals", 16)):
        save_stylegan2(StyleGAN2(8, (4, 4), d), tmp_path / "family" / "stylegan2" / name)
    store = ArtifactStore(settings.artifacts)
    weights = Mapper(num_layers=4, d=8).state_dict()
    for generator in ("faces", "animals"):
        named = {f"{generator}/{key}": tensor for key, tensor in weights.items()}
        store.write_tensors(result_path(generator, "mapper.safetensors"), named)

    def ask(training: str) -> None:
        mapper = editor_pb2.StyleClipMapper(mapper=f"operations/{training}")
        name, request = to_request(editor_pb2.EditRequest(styleclip_mapper=mapper), "a")
        prepare(request, METHODS[name], store, settings)

    ask("faces")
    with pytest.raises(InvalidArgument, match="of the generator animals") as error:
        ask("animals")
    assert error.value.field == "mapper"
