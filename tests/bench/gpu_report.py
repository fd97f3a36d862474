"""The figures of a GPU as Markdown for docs/performance.md."""

from typing import Any


def markdown(figures: dict[str, Any]) -> str:
    """What they are of, the ways, the rows that share a forward, the check."""
    machine, check = figures["machine"], figures["check"]
    lines = [
        f"{machine['device']}; CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, diffusers "
        f"{machine['diffusers']}. {figures['family']}, {figures['parameters'] / 1e6:.0f} million parameters, "
        f"{figures['dtype']}, {figures['side']}x{figures['side']} pixels, {figures['steps']} steps, "
        f"{figures['flops_of_a_row'] / 1e9:.4g} GFLOPs a row; "
        f"torch.mm of side {figures['matrix_side']}: {figures['matrix_flops'] / 1e12:.4g} TFLOP/s.",
        "",
        "| way | at a time | images/s | over eager | of the matrix rate | GB | p50 ms | p95 ms "
        "| rows a forward |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way in figures["ways"]:
        if "failed" in way:
            lines.append(f"| {way['way']} | {way['at_a_time']} | failed | | | | | | |")
            continue
        peak = way["peak_memory_bytes"]
        cells = [
            way["way"], way["at_a_time"], way["images_per_second"], way["over_eager"],
            f"{way['share_of_matrix_rate']:.1%}", "" if peak is None else f"{peak / 1e9:.2f}",
            way.get("p50_ms", ""), way.get("p95_ms", ""), way.get("rows_of_a_forward", ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    together = figures["rows_together"]
    lines += ["", "| steps of two rows together | same bits | time over apart |", "| --- | --- | --- |"]
    for one in together["steps"]:
        time = one.get("together_over_apart", "no memory")
        lines.append(f"| {one['steps']} | {'yes' if one.get('same_bits') else 'no'} | {time} |")
    same = "the pipeline's" if check["same"] else "NOT the pipeline's"
    lines += [
        "",
        f"The services' image is {same}: from the float32 pipeline's it is {check['services_off']} of "
        f"another seed's distance, the pipeline in {figures['dtype']} {check['pipeline_off']}.",
    ]
    return "\n".join(lines) + "\n"
