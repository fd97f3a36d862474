"""Steps in a row: the UNet's rows from the queue, the sums here, nobody in between."""

import numpy as np
import torch

from sfumato.common.linear_steps import LinearRun, RunResult, combined, latents_digest
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import Unet
from sfumato.denoiser.step_queue import StepQueue


async def do_run(queue: StepQueue, unet: Unet, run: LinearRun, conditioning: Conditioning) -> RunResult:
    """Each step's rows wait in the queue like any others, so others' steps come in between."""
    # NumPy's calls cost a fifth of torch's, and these are small arrays.
    tensors = list(run.tensors.numpy())
    latents, after = tensors[0], []
    chosen: dict[tuple[int, ...], Conditioning] = {(): conditioning}
    for step in run.steps:
        if step.rows not in chosen:
            chosen[step.rows] = conditioning[list(step.rows)]
        model_input = torch.from_numpy(latents * step.input_scale)[None]
        predictions = await queue.noise_pred(unet, model_input, step.timestep, chosen[step.rows])
        tensors.append(combined(zip(step.weights, predictions.numpy(), strict=True)))
        for terms in step.sums:
            tensors.append(combined((coefficient, tensors[number]) for number, coefficient in terms))
        latents = tensors[-1]
        after.append(latents)
    returned = np.stack([tensors[number] for number in run.returned])
    return RunResult(torch.from_numpy(returned), tuple(map(latents_digest, after)))
