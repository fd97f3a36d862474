"""Mutations of messages, by their descriptors, and of their bytes. Seeded: a seed gives the same again."""

import math
import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz.samples import NAMES, jpeg, png

INTS = (0, 1, -1, 2, 3, 7, 8, 63, 64, 65, 127, 1000, 2**16, 2**20)
EDGES = {
    FieldDescriptor.TYPE_INT32: (2**31 - 1, -(2**31)),
    FieldDescriptor.TYPE_INT64: (2**63 - 1, -(2**63), 2**40),
    FieldDescriptor.TYPE_UINT32: (2**32 - 1,),
    FieldDescriptor.TYPE_UINT64: (2**64 - 1,),
}
UNSIGNED = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf, 1e38, 7.5, 100.0)
TEXTS = (
    "", " ", "a cat", "a dog on a blue background", "x" * 2000, "\0", "\u202e\u0301", "🦊" * 40, "%s{}\n\r",
    "../../etc/passwd", "fuzz-0", "a b", "\ud7ff\U0010ffff", "'; DROP TABLE workflow_status; --", *NAMES,
)  # fmt: skip
KEYS = ("", "shared_memory_region", "classification", "priority", "timeout", "sequence_id", "x" * 2000)
MAX_DEPTH = 4
MAX_BYTES = 24 * 2**20  # above what the services take, which is 16 MiB
MANY_BYTES = 100_000  # are not repeated again


class Fuzzer:
    """Makes mutated calls."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def call(self, sample: list[Message], request: type[Message]) -> list[bytes]:
        """The sample's messages mutated, or random ones, as bytes."""
        chance = self.random.random()
        if chance < 0.15:
            messages = [self._filled(request(), 0) for _ in range(self.random.randint(1, 3))]
        else:
            messages = [self._copied(message) for message in sample]
            for _ in range(self.random.choice((1, 1, 2, 4))):
                self._mutate(self.random.choice(messages), 0)
        if len(messages) > 1 and self.random.random() < 0.2:
            self.random.shuffle(messages)
        data = [message.SerializeToString()[:MAX_BYTES] for message in messages]
        if self.random.random() < 0.3:
            index = self.random.randrange(len(data))
            data[index] = self.wire(data[index])
        return data

    def wire(self, data: bytes) -> bytes:
        """The bytes with flips, cuts, repeats and inserted noise."""
        mutated = bytearray(data)
        for _ in range(self.random.choice((1, 1, 3, 10))):
            at = self.random.randrange(len(mutated) + 1)
            end = min(len(mutated), at + self.random.choice((1, 2, 8, 64)))
            match self.random.randrange(5):
                case 0 if at < len(mutated):
                    mutated[at] ^= 1 << self.random.randrange(8)
                case 1:
                    del mutated[at:end]
                case 2:
                    mutated[at:at] = mutated[at:end]
                case 3:
                    mutated[at:at] = self.random.randbytes(self.random.choice((1, 2, 9, 40)))
                case _:
                    del mutated[at:]
        return bytes(mutated)

    def _copied(self, message: Message) -> Message:
        copied = type(message)()
        copied.CopyFrom(message)
        return copied

    def _mutate(self, message: Message, depth: int) -> None:
        """Changes one field, of this message or of one in it."""
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        present = [field for field, _ in message.ListFields()]
        field = self.random.choice(present if present and self.random.random() < 0.7 else list(fields))
        value = getattr(message, field.name)
        if self.random.random() < 0.1:
            message.ClearField(field.name)
        elif field.is_repeated:
            self._mutate_repeated(value, field, depth)
        elif field.message_type is not None:
            value.SetInParent()
            self._mutate(value, depth + 1)
        else:
            setattr(message, field.name, self._scalar(field, value))

    def _mutate_repeated(self, values: Any, field: FieldDescriptor, depth: int) -> None:
        message = field.message_type is not None
        if message and field.message_type.GetOptions().map_entry:  # of text to message, those that there are
            self._mutate(values[self.random.choice(KEYS)], depth + 1)
            return
        choice = self.random.randrange(4)
        if choice == 0 and len(values):
            del values[self.random.randrange(len(values))]
        elif choice == 1 and 0 < sum(map(_size, values)) < MANY_BYTES:
            values.extend(list(values) * self.random.choice((1, 3, 20)))
        elif message and len(values) and choice == 2:
            self._mutate(self.random.choice(list(values)), depth + 1)
        elif message:
            self._filled(values.add(), depth + 1)
        else:
            values.append(self._scalar(field, None))

    def _filled(self, message: Message, depth: int) -> Message:
        """A message with some of its fields at random."""
        for field in message.DESCRIPTOR.fields:
            if self.random.random() < 0.5 or depth > MAX_DEPTH:
                continue
            if field.is_repeated:
                for _ in range(self.random.choice((0, 1, 2, 5))):
                    self._mutate_repeated(getattr(message, field.name), field, depth)
            elif field.message_type is not None:
                value = getattr(message, field.name)
                value.SetInParent()
                self._filled(value, depth + 1)
            else:
                setattr(message, field.name, self._scalar(field, None))
        return message

    def _scalar(self, field: FieldDescriptor, value: Any) -> Any:
        choose = self.random.choice
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return choose((True, False))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return choose(FLOATS)
            case FieldDescriptor.CPPTYPE_ENUM:
                return choose((0, 1, 2, 3, 9, 99, -1, 2**31 - 1))
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
                return choose(TEXTS)
            case FieldDescriptor.CPPTYPE_STRING:
                kept = value or choose((png(), jpeg(), b""))
                return choose(
                    (kept, self.wire(kept), png(64), png(300), png(16, "L"), jpeg(), b"", b"\0" * 999)
                )
        numbers = (*INTS, *EDGES.get(field.type, ()))
        return choose([abs(n) for n in numbers] if field.type in UNSIGNED else numbers)


def _size(value: Any) -> int:
    """About the bytes of an entry."""
    if isinstance(value, Message):
        return int(value.ByteSize()) + 1
    return len(value) + 1 if isinstance(value, bytes | str) else 8
