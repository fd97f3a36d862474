"""A graph on a remote Triton Inference Server, which has it from deploy/triton/export.py.

A call that the server does not answer is repeated: the graph is a function of its inputs.
"""

import time

import numpy as np
import structlog
import torch
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from sfumato.common.errors import FailedPrecondition, Unavailable
from sfumato.common.onnx_graph import MAX_RELATIVE_ERROR, Graph, relative_error

log = structlog.get_logger()

RETRY_SECONDS = 10.0  # from the first failure
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 1.0  # between attempts, doubled from one to the next
CALL_SECONDS = 120.0  # a server that is silent for so long is lost
LOST = {"StatusCode.UNAVAILABLE", "StatusCode.CANCELLED", "StatusCode.DEADLINE_EXCEEDED"}
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
]


class TritonSession:
    """As onnx_graph.Session. `run` may be called from several threads at once."""

    def __init__(self, graph: Graph, url: str) -> None:
        """url: host:port of the server's gRPC."""
        self._model, self._names, self._url = graph.name, list(graph.inputs), url
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL)

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The output, on the CPU, for inputs on the CPU in the graph's order.

        Raises:
            Unavailable: no answer for RETRY_SECONDS.
            FailedPrecondition: the server does not serve this graph.
        """
        give_up, wait = None, FIRST_WAIT_SECONDS
        while True:
            try:
                return self._infer(inputs)
            except InferenceServerException as error:
                if error.status() not in LOST:
                    raise self._refused(error) from error
                give_up = give_up or time.monotonic() + RETRY_SECONDS
                if time.monotonic() + wait > give_up:
                    raise self._lost(error) from error
                log.warning("Triton does not answer; asking again", **self._named(error), seconds=wait)
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _infer(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        given = [_input(name, tensor) for name, tensor in zip(self._names, inputs, strict=True)]
        result = self._client.infer(self._model, given, client_timeout=CALL_SECONDS)
        output = result.as_numpy(result.get_response().outputs[0].name)
        return torch.from_numpy(output.copy())  # its own memory: the message's is read-only

    def _named(self, error: InferenceServerException) -> dict[str, str]:
        return {"url": self._url, "model": self._model, "error": f"{error.status()}: {error.message()}"}

    def _lost(self, error: InferenceServerException) -> Unavailable:
        said = f"the Triton server at {self._url} does not answer for model {self._model}"
        lost = Unavailable(f"{said}, tried for {RETRY_SECONDS:.0f} s ({error.message()}); try again later")
        lost.was_repeated = True
        return lost

    def _refused(self, error: InferenceServerException) -> FailedPrecondition:
        advice = "export the family with deploy/triton/export.py"
        return FailedPrecondition(
            f"the Triton server at {self._url} cannot run model {self._model} ({error.message()}); {advice}"
        )


def open_triton(graph: Graph, url: str) -> TritonSession:
    """A session of the graph, once the server gives what the module gives.

    Raises:
        Unavailable: no answer for RETRY_SECONDS.
        FailedPrecondition: the server has no such model, or one that differs from the module.
    """
    session = TritonSession(graph, url)
    error = max(relative_error(graph.module, session.run, inputs) for inputs in graph.checks)
    if not error <= MAX_RELATIVE_ERROR:
        raise FailedPrecondition(
            f"the Triton server at {url} has a {graph.name} that differs from this family's by {error:.2g} "
            "of its largest value; export the family with deploy/triton/export.py"
        )
    log.info("forward passes run on Triton; gradients and attention stay on torch", url=url, graph=graph.name)
    return session


def _input(name: str, tensor: torch.Tensor) -> triton.InferInput:
    """Scalars of rows travel as [rows, 1]: Triton has no shape of rows alone."""
    array = np.ascontiguousarray(tensor.numpy())
    array = array[:, None] if array.ndim == 1 else array
    return triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
