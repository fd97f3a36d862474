"""A request's fields to a method's options: defaults filled in, ranges checked."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.family import part_of
from sfumato.editor.config import EditorSettings
from sfumato.editor.method import ImagePrompt, Prompt

WEIGHTS = (-100.0, 100.0)


def resolve(options_type: type[Any], given: Mapping[str, Any], settings: EditorSettings) -> Any:
    """The options with the given fields; `prompts` and `image_prompts` are sequences of mappings.

    Raises:
        InvalidArgument, ResourceExhausted: with field, limit and value.
    """
    fields = {field.name: field for field in dataclasses.fields(options_type)}
    for name in given:
        if name not in fields:
            raise InvalidArgument(name, f"one of {', '.join(fields)}", "another option")
    for name, field in fields.items():
        if field.metadata.get("required") and not given.get(name):
            raise InvalidArgument(name, "given", "empty", "Say what the image shall show.")
    values = {name: _checked(fields[name], value, settings) for name, value in given.items()}
    return options_type(**values)


def from_json(options_type: type[Any], values: Mapping[str, Any]) -> Any:
    """The options from what `dataclasses.asdict` and JSON made of them."""
    kinds = {"prompts": Prompt, "image_prompts": ImagePrompt}
    return options_type(
        **{
            name: tuple(kinds[name](**entry) for entry in value) if name in kinds else value
            for name, value in values.items()
        }
    )


def check_folders(options: Any, family: Path) -> None:
    """
    Raises:
        InvalidArgument: an option that method.folder made names a folder that the family does not have.
    """
    for field in dataclasses.fields(options):
        if part := field.metadata.get("part"):
            folder_of(family, part, getattr(options, field.name), field.name)


def folder_of(family: Path, part: str, name: str, field: str) -> Path:
    """The family's folder part/name.

    Raises:
        InvalidArgument: there is none; field says where the name comes from.
        NotFound: the family does not even have the part.
    """
    known = sorted(path.name for path in part_of(family, part).iterdir() if path.is_dir())
    if name not in known:
        raise InvalidArgument(field, f"one of {', '.join(known)}", name)
    return family / part / name


def _checked(field: "dataclasses.Field[Any]", value: Any, settings: EditorSettings) -> Any:
    name, limits = field.name, field.metadata
    if name in ("prompts", "image_prompts"):
        return _prompts(name, value, settings)
    if "choices" in limits:
        if value not in limits["choices"]:
            raise InvalidArgument(name, f"one of {', '.join(limits['choices'])}", value)
        return value
    if isinstance(value, str):
        return _text(name, value, settings)
    if "low" in limits:
        high = limits["high"]
        if name == "num_iterations":
            high = min(high, settings.max_num_iterations)
        return _number(name, value, limits["low"], high)
    return value


def _prompts(name: str, entries: Sequence[Mapping[str, Any]], settings: EditorSettings) -> tuple[Any, ...]:
    if len(entries) > settings.max_prompts:
        raise ResourceExhausted(name, f"at most {settings.max_prompts}", len(entries))
    prompts = []
    for index, entry in enumerate(entries):
        path = f"{name}[{index}]"
        values = {"weight": _number(f"{path}.weight", entry.get("weight", 1.0), *WEIGHTS)}
        if "stop" in entry:
            values["stop"] = _number(f"{path}.stop", entry["stop"], -1e6, 1e6)
        if name == "prompts":
            prompts.append(Prompt(_text(f"{path}.text", entry.get("text", ""), settings), **values))
        else:
            prompts.append(ImagePrompt(**values))  # type: ignore[arg-type]
    return tuple(prompts)


def _text(name: str, value: str, settings: EditorSettings) -> str:
    if not value.strip():
        raise InvalidArgument(name, "1 or more characters", "empty", "Say what the image shall show.")
    if len(value) > settings.max_prompt_characters:
        raise InvalidArgument(
            name, f"at most {settings.max_prompt_characters} characters", f"{len(value)} characters"
        )
    return value


def _number(name: str, value: float, low: float, high: float) -> float:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidArgument(name, f"{low} to {high}", value)
    return value
