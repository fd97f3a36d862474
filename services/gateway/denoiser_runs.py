"""Runs of steps to messages and back."""

from sfumato_protos.v1 import denoiser_pb2

from sfumato.common.linear_steps import LinearRun, LinearStep, RunResult
from sfumato.common.tensors import from_message, to_message


def run_message(step: int, run: LinearRun) -> denoiser_pb2.DenoiseRun:
    """The run; step: the index of its first."""
    return denoiser_pb2.DenoiseRun(
        step=step,
        tensors=to_message(run.tensors),
        steps=[_step_message(one) for one in run.steps],
        returned=run.returned,
    )


def _step_message(step: LinearStep) -> denoiser_pb2.LinearStep:
    return denoiser_pb2.LinearStep(
        timestep=step.timestep,
        input_scale=step.input_scale,
        rows=step.rows,
        weights=step.weights,
        sums=[
            denoiser_pb2.LinearSum(
                tensors=[number for number, _ in terms],
                coefficients=[coefficient for _, coefficient in terms],
            )
            for terms in step.sums
        ],
    )


def run_result(response: denoiser_pb2.DenoiseResponse, run: LinearRun) -> RunResult:
    """What the run left."""
    shape = (len(run.returned), *run.tensors.shape[1:])
    num_elements = len(run.returned) * run.tensors[0].numel()
    tensors = from_message(response.tensors, "tensors", shape, num_elements)
    return RunResult(tensors, tuple(response.latents_digests))
