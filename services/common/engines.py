"""Which engine runs a forward pass: torch itself, or its graph in ONNX Runtime or on Triton."""

from pathlib import Path
from typing import Protocol

import structlog
import torch

from sfumato.common.onnx_graph import Graph, GraphError, open_graph
from sfumato.common.triton import open_triton

log = structlog.get_logger()


class GraphSession(Protocol):
    """Runs a graph; from several threads at once, too."""

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The output, on the CPU, for inputs on the CPU in the graph's order."""


def choose_session(
    graph: Graph, engine: str, cache: Path, device: torch.device, num_threads: int, triton_url: str = ""
) -> GraphSession | None:
    """The session of a service's setting, or None where torch is to run the module.

    Args:
        graph: what to run.
        engine: torch, onnxruntime, triton, or auto: onnxruntime on a CPU, torch elsewhere.
        cache: folder for the graphs that are exported for onnxruntime.
        device: where onnxruntime runs it.
        num_threads: CPU threads of one run in onnxruntime.
        triton_url: host:port of the server.

    Returns:
        None for torch and, with an error in the log, where onnxruntime's graph is no good.

    Raises:
        Unavailable, FailedPrecondition: as open_triton; a server that was chosen is not done without.
    """
    if engine == "triton":
        return open_triton(graph, triton_url)
    if engine == "torch" or (engine == "auto" and device.type != "cpu"):
        return None
    try:
        return open_graph(graph, cache, device, num_threads)
    except GraphError as error:
        log.error("runs on torch, not on onnxruntime", graph=graph.name, error=str(error))
        return None
