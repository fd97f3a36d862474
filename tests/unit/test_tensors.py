"""The tensor codec: what goes in comes out, and nothing malformed gets through."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sfumato_protos.v1 import tensor_pb2

from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.tensors import from_message, to_message


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_a_float32_tensor_survives_the_wire_bit_for_bit(shape: list[int], seed: int) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    back = from_message(to_message(tensor), "x", [None] * len(shape), 10_000)
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_arrive_as_the_same_numbers(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0.5, -2.0, 3.25]], dtype=dtype)
    assert torch.equal(from_message(to_message(tensor), "x", (1, 3), 10), tensor.float())


def test_a_view_that_is_not_contiguous_is_sent_row_major() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert to_message(tensor).data == tensor.contiguous().numpy().tobytes()


def test_bytes_that_do_not_match_the_shape_name_field_limit_and_value() -> None:
    message = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2, 2], data=b"\0" * 15)
    with pytest.raises(InvalidArgument) as error:
        from_message(message, "latents", (2, 2), 100)
    assert (error.value.field, error.value.value) == ("latents.data", "15")
    assert "16 bytes" in error.value.limit


@pytest.mark.parametrize("shape", [[2**62, 2**62], [-1, 4], [0, 4], [1] * 9, [4]])
def test_a_shape_that_is_absurd_is_refused_before_anything_is_made(shape: list[int]) -> None:
    message = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape, data=b"\0" * 16)
    with pytest.raises((InvalidArgument, ResourceExhausted)):
        from_message(message, "latents", (None, None), 1000)


def test_an_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="DATA_TYPE_FLOAT32"):
        from_message(tensor_pb2.Tensor(shape=[1], data=b"0000"), "x", (1,), 1)
