"""Runs a method with an interruption and without, for the tests of each method."""

from typing import Any

import torch

from sfumato.editor.method import Inputs, Method
from sfumato.editor.video import Video


def finish(method: Method, state: Any) -> Any:
    """Runs to the end."""
    for _ in method.run(state):
        pass
    return state


def assert_resumes_bit_for_bit(method: Method, options: Any, inputs: Inputs, models: Any, at: int = 2) -> Any:
    """Asserts that a run saved behind iteration `at` and gone on with elsewhere ends like an undisturbed one.

    Returns the undisturbed run's final state.
    """
    whole = finish(method, method.start(options, inputs, models))
    first = method.start(options, inputs, models)
    for progress in method.run(first):
        if progress.iteration == at:
            break
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    torch.rand(7)  # torch's global generator must not matter
    second = method.start(options, inputs, models)
    second.load(saved)
    second.iteration = at
    seen = [progress.iteration for progress in method.run(second)]
    assert seen == list(range(at + 1, whole.num_iterations + 1))
    expected, got = whole.tensors(), second.tensors()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert any(not torch.equal(expected[name], saved[name]) for name in expected)
    expected, got = whole.result(), second.result()
    assert all(_bytes(expected[name]) == _bytes(got[name]) for name in ("image", "video") if name in expected)
    return whole


def _bytes(made: Any) -> bytes:
    """Of a picture or a clip."""
    pixels: bytes = (made.frames if isinstance(made, Video) else made).tobytes()
    return pixels
