"""Triton's Python backend: one graph in ONNX Runtime. export.py puts it beside the graph, as 1/model.py.

It needs numpy and onnxruntime (on a GPU onnxruntime-gpu) in the Python of Triton's backend. Requests that
wait together (dynamic_batching) and have one shape but for their rows go through one forward. Tensors pass by
DLPack: a backend that was built for numpy 1, as Triton 2.51's, reads and writes numpy 2's arrays wrongly.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What the backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._output = config["output"][0]["name"]
        self._has_rows = config["max_batch_size"] > 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["num_threads"]["string_value"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            providers = [("CUDAExecutionProvider", {"device_id": int(args["model_instance_device_id"])})]
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request."""
        together: dict[Any, list[int]] = defaultdict(list)
        arrays = [
            [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for name in self._inputs]
            for request in requests
        ]
        for index, inputs in enumerate(arrays):
            shapes = tuple(array.shape[1:] for array in inputs)
            together[shapes if self._has_rows else index].append(index)
        responses: list[Any] = [None] * len(requests)
        for indices in together.values():
            for index, response in zip(indices, self._answers([arrays[i] for i in indices]), strict=True):
                responses[index] = response
        return responses

    def _answers(self, group: list[list[np.ndarray[Any, Any]]]) -> list[Any]:
        """Of requests that fit together."""
        try:
            joined = [np.concatenate(parts) for parts in zip(*group, strict=True)]
            (output,) = self._session.run(None, dict(zip(self._inputs, joined, strict=True)))
        except Exception as error:  # ONNX Runtime's errors have no common class
            failed = pb_utils.TritonError(f"ONNX Runtime: {error}"[:500])
            return [pb_utils.InferenceResponse(error=failed) for _ in group]
        ends = np.cumsum([len(inputs[0]) for inputs in group])[:-1]
        rows = np.split(output, ends) if len(group) > 1 else [output]
        tensors = [pb_utils.Tensor.from_dlpack(self._output, part) for part in rows]
        return [pb_utils.InferenceResponse([tensor]) for tensor in tensors]
