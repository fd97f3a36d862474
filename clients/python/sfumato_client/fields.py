"""Options as fields of a message; what is wrong is named, which protobuf does not do."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message


def check_names(options: Mapping[str, Any], known: type) -> None:
    """
    Raises:
        TypeError: an option that the TypedDict `known` does not have.
    """
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(
                f"there is no option {name}; there are {', '.join(sorted(known.__annotations__))}"
            )


def enum_value(option: str, name: Any, known: Sequence[str], enum: Any, prefix: str) -> Any:
    """The wire value of an option's name.

    Raises:
        ValueError: it is none of those known.
    """
    if name not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, but is {name}")
    return enum.Value(f"{prefix}_{name.upper()}")


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """Within, errors of protobuf name the option.

    Raises:
        TypeError, ValueError: the value is of another type, or out of the type's range.
    """
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{option}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def set_field(message: Message, name: str, value: Any) -> None:
    """Raises as `naming`."""
    with naming(name):
        setattr(message, name, value)
