"""JSON files that the operator writes: nothing unknown in them, and what is wrong said in one line."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class FileModel(BaseModel):
    """A part of such a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=FileModel)


def read_json(kind: type[M], text: bytes, what: str) -> M:
    """
    Raises:
        ValueError: it is no valid `what`; the message says where, and quotes no value: some are secrets.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"no valid {what}: {'; '.join(problems)}") from None
