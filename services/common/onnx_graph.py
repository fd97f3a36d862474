"""A forward pass as an ONNX graph: exported here, kept on disk, checked against torch, run by ONNX Runtime.

The export traces the module with torch's TorchScript exporter: the dynamo one takes five times as long, and
turns a UNet's choice between even and odd sizes into the one that it saw, where the traced graph of an odd
size holds for all (docs/decisions/005). A graph lies in a folder of the cache, named after what it was made
from, beside the digest of its files; it gets there by one rename, so that processes that start together
never see half of one.
"""

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import structlog
import torch

from sfumato.common.metrics import count_lookup
from sfumato.common.weights import digest_of, files_of

log = structlog.get_logger()

OPSET = 20
REVISION = 2  # one more whenever an export changes that the versions below do not tell
MAX_RELATIVE_ERROR = 1e-3
FILE, DIGEST = "model.onnx", "sha256"

Arrays = Sequence[torch.Tensor]


class GraphError(Exception):
    """The model cannot be run as a graph; the message says why, for the log."""


@dataclass(frozen=True)
class Graph:
    """What is exported.

    Attributes:
        name: of the cache's folder, before the digest.
        module: takes the inputs in their order and gives one tensor.
        weights: the folder that the module was loaded from; its files are part of the digest.
        inputs: an example of each input, in the module's order, on the CPU.
        dynamic_axes: of inputs and "output": dimension to its name.
        checks: inputs on which graph and module must agree, several sizes.
    """

    name: str
    module: torch.nn.Module
    weights: Path
    inputs: Mapping[str, torch.Tensor]
    dynamic_axes: Mapping[str, Mapping[int, str]]
    checks: Sequence[Arrays]


class Session:
    """A graph in ONNX Runtime. `run` may be called from several threads at once."""

    def __init__(self, path: Path, names: Sequence[str], device: torch.device, num_threads: int) -> None:
        """num_threads: CPU threads of one run."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        # A thread that waits must not keep a core from the other services.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._names = names
        self._session = onnxruntime.InferenceSession(path, options, providers=_providers(device))

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The output, on the CPU, for inputs on the CPU in the graph's order."""
        feed = {name: _array(tensor) for name, tensor in zip(self._names, inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, feed)[0])


def open_graph(graph: Graph, cache: Path, device: torch.device, num_threads: int) -> Session:
    """A session of the graph, from the cache or exported now, that agrees with the module.

    Raises:
        GraphError: it cannot be exported or run, or differs from the module by more than
            MAX_RELATIVE_ERROR, also when made afresh.
    """
    for provider, _ in _providers(device):
        if provider not in onnxruntime.get_available_providers():
            raise GraphError(f"onnxruntime has no {provider} here: it needs onnxruntime-gpu")
    with _folder(cache) as root:
        folder = root / f"{graph.name}-{_key(graph)}"
        with _only_one(folder.with_suffix(".lock")):
            if folder.exists():
                with contextlib.suppress(GraphError):
                    session = _opened(graph, folder, device, num_threads)
                    count_lookup("onnx_graph", hit=True)
                    return session
                log.warning("the cached graph is damaged and made again", graph=str(folder))
                shutil.rmtree(folder)
            count_lookup("onnx_graph", hit=False)
            _export(graph, folder)
            return _opened(graph, folder, device, num_threads)


def _opened(graph: Graph, folder: Path, device: torch.device, num_threads: int) -> Session:
    """The folder's graph, whole and right."""
    try:
        if (folder / DIGEST).read_text() != _digest_of_graph(folder):
            raise GraphError(f"{folder} is not what was written")
        session = Session(folder / FILE, list(graph.inputs), device, num_threads)
        error = max(relative_error(graph.module, session.run, inputs) for inputs in graph.checks)
    except GraphError:
        raise
    except Exception as failure:  # ONNX Runtime's errors have no common class
        raise GraphError(f"{graph.name} does not run: {failure}"[:500]) from failure
    if not error <= MAX_RELATIVE_ERROR:
        raise GraphError(f"{graph.name} differs from torch by {error:.2g} of its largest value")
    return session


def _export(graph: Graph, folder: Path) -> None:
    log.info("exporting a graph for ONNX Runtime, once for these weights", graph=str(folder))
    start = time.monotonic()
    device = next(graph.module.parameters()).device
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".made-"))
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of the tracer, on branches that the checks cover
            torch.onnx.export(
                graph.module.eval(),
                tuple(tensor.to(device) for tensor in graph.inputs.values()),
                str(made / FILE),  # a Path would keep weights of over 2 GB from files of their own
                dynamo=False,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=["output"],
                dynamic_axes=graph.dynamic_axes,
            )
        (made / DIGEST).write_text(_digest_of_graph(made))
        made.rename(folder)
    except Exception as failure:
        raise GraphError(f"{graph.name} cannot be exported: {failure}"[:500]) from failure
    finally:
        shutil.rmtree(made, ignore_errors=True)
    log.info("exported", graph=str(folder), seconds=round(time.monotonic() - start, 1))


def relative_error(
    module: torch.nn.Module, run: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]
) -> float:
    """Largest difference from the module over the module's largest value; NaN where either is not finite."""
    device = next(module.parameters()).device
    with torch.inference_mode():
        expected = module(*(tensor.to(device) for tensor in inputs)).cpu()
    return float((run(*inputs) - expected).abs().max() / expected.abs().max())


@contextlib.contextmanager
def _folder(cache: Path) -> Iterator[Path]:
    """The cache's folder, or one for this start alone where it cannot be written."""
    try:
        cache = cache.expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except (OSError, RuntimeError) as error:
        log.warning("graphs cannot be kept: each start exports again", cache=str(cache), error=str(error))
        with tempfile.TemporaryDirectory(prefix="sfumato-onnx-") as own:
            yield Path(own)
        return
    yield cache


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Holds the file's lock: of several processes one exports, and the others find what it made."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that exports this graph", lock=str(path))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(graph: Graph) -> str:
    """A digest of the weights and of all that turns them into a graph."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "onnx", "diffusers", "transformers")]
    made_by = f"{OPSET} {REVISION} {type(graph.module).__qualname__} {libraries} {onnxruntime.__version__}"
    return hashlib.sha256(f"{made_by} {digest_of(files_of(graph.weights))}".encode()).hexdigest()[:32]


def _digest_of_graph(folder: Path) -> str:
    return digest_of([path for path in files_of(folder) if path.name != DIGEST])


def _providers(device: torch.device) -> list[tuple[str, dict[str, Any]]]:
    if device.type == "cpu":
        return [("CPUExecutionProvider", {})]
    return [("CUDAExecutionProvider", {"device_id": device.index or 0})]


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.contiguous().numpy()
    return array
