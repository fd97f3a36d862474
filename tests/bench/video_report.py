"""What video edits reach on clips whose alpha, flow and layers are known.

`make video-report` takes five clips apart, edits each one's foreground by Text2LIVE on its atlas, and two
pairs of its frames by themselves; a CLIP that guides nothing judges. All is kept in --out (it goes on where
it was stopped; remove the folder after a change of settings); figures go to figures.json and a sheet to
sheet.jpg. Settings: QUICK_ATLAS and QUICK_TEXT2LIVE of sfumato_client.atlases.

    python -m tests.bench.video_report --clips 1 --iterations 200      # a quick look
"""

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from sfumato.editor import text2live, text2live_video
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.atlas_layers import LayerMaps
from sfumato.editor.decomposition import atlas_picture, render_frame
from sfumato.editor.method import Inputs
from sfumato.editor.models import FamilyModels
from sfumato.editor.pixels import side_by_side
from sfumato.trainer import artwork
from sfumato.trainer.clips import Clip, make_clip
from sfumato.trainer.vocabulary import EMOJI
from sfumato_client.atlases import QUICK_TEXT2LIVE
from tests.bench.edit_cases import EMOJI as SETTINGS
from tests.bench.judge import Judge
from tests.bench.video_cases import (
    Parted,
    alpha_iou,
    psnr,
    reconstruction_psnr,
    take_apart,
    track_errors,
)

FIRST_SEED = 100
NUM_TRACKS = 1000
PAIRS = (20, 45)  # frames t and t + 1 that are edited by themselves
LAYERS = ("foreground", "background")
# What the summary has the mean of.
MEANS = (
    "seconds", "psnr", "alpha_iou", "warped_error_over_source", "warped_error_over_frame_by_frame",
    "warped_error_over_source_on_object", "warped_error_over_frame_by_frame_on_object",
    "frames_nearer_to_text",
    "background_psnr",
)  # fmt: skip


def texts(clip: Clip, seed: int) -> dict[str, str]:
    """A foreground's edit: another noun in place of its own."""
    others = [entry.noun for entry in EMOJI if entry.noun != clip.noun]
    noun = others[int(np.random.default_rng(seed).integers(len(others)))]
    return {"prompt": noun, "screen_prompt": noun, "source_prompt": clip.noun, "region_prompt": clip.noun}


def edit_clip(parted: Parted, path: Path, models: Any, seed: int, most: int) -> np.ndarray:
    """The edited frames uint8 [n, h, w, 3], from disk where they are."""
    file = path / "edited.npy"
    if not file.exists():
        few = {**QUICK_TEXT2LIVE, "templates": "emoji"}
        few["num_iterations"] = min(most, few["num_iterations"])
        options = text2live_video.Options("operations/x", "foreground", **texts(parted.clip, seed), **few)
        state = text2live_video.start(options, Inputs(earlier=parted.found.tensors()), models)
        for _ in text2live_video.run(state):
            pass
        result = state.result()
        np.save(file, result["video"].frames)  # type: ignore[union-attr]
        result["edit_layer"].save(path / "edit_layer.png")  # type: ignore[union-attr]
    edited: np.ndarray = np.load(file)
    return edited


def edit_frames(clip: Clip, path: Path, models: Any, seed: int, most: int) -> dict[int, np.ndarray]:
    """Each frame of PAIRS, edited as an image by the same texts."""
    found = {}
    for t in sorted({t + k for t in PAIRS for k in (0, 1)}):
        file = path / f"alone-{t}.png"
        if not file.exists():
            few = {**SETTINGS["text2live"], "num_iterations": min(most, QUICK_TEXT2LIVE["num_iterations"])}
            options = text2live.Options(**texts(clip, seed), **few)
            state = text2live.start(options, Inputs(Image.fromarray(clip.frames[t])), models)
            for _ in text2live.run(state):
                pass
            state.result()["image"].save(file)  # type: ignore[union-attr]
        found[t] = np.asarray(Image.open(file))
    return found


def warped_error(clip: Clip, first: np.ndarray, second: np.ndarray, t: int, inside: bool) -> float:
    """Mean absolute difference of what frame t shows and where the true flow leads it in t + 1.

    Pixels at the emoji's edge, or that are covered in t + 1, are left out; inside: of the emoji alone.
    """
    height, width = clip.alpha.shape[1:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    flow = clip.flow(t, t + 1).astype(np.float32)
    there = x + flow[..., 0], y + flow[..., 1]
    looked = cv2.remap(second.astype(np.float32), *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.remap(clip.alpha[t + 1], *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    own = clip.alpha[t]
    solid = ((own > 0.98) & (alpha > 0.98)) | ((own < 0.02) & (alpha < 0.02))
    solid &= (there[0] >= 0) & (there[0] <= width - 1) & (there[1] >= 0) & (there[1] <= height - 1)
    wanted = solid & (own > 0.5) if inside else solid
    return float(np.abs(looked - first).mean(-1)[wanted].mean())


def around(clip: Clip, frame: np.ndarray, t: int) -> Image.Image:
    """The square around the emoji, at the judge's size of scenes."""
    rows, columns = np.nonzero(clip.alpha[t] > 0.5)
    middle = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    reach = 0.65 * max(np.ptp(rows), np.ptp(columns))
    box = [round(m + sign * reach) for sign in (-1, 1) for m in middle]
    return Image.fromarray(frame).crop(box).resize((64, 64), Image.Resampling.BICUBIC)  # type: ignore[arg-type]


def edit_figures(
    parted: Parted, edited: np.ndarray, alone: dict[int, np.ndarray], judge: Judge, prompt: str
) -> dict[str, Any]:
    """Temporal consistency, judge similarity, and what became of the background."""
    clip, steps = parted.clip, range(len(edited) - 1)
    figures: dict[str, Any] = {}
    for name, inside in (("", False), ("_on_object", True)):
        source = np.mean([warped_error(clip, clip.frames[t], clip.frames[t + 1], t, inside) for t in steps])
        made = np.mean([warped_error(clip, edited[t], edited[t + 1], t, inside) for t in steps])
        pairs = np.mean([warped_error(clip, edited[t], edited[t + 1], t, inside) for t in PAIRS])
        single = np.mean([warped_error(clip, alone[t], alone[t + 1], t, inside) for t in PAIRS])
        figures[f"warped_error_over_source{name}"] = round(float(made / source), 3)
        figures[f"warped_error_over_frame_by_frame{name}"] = round(float(pairs / single), 3)
    text = judge.of_texts([prompt])[0]
    frames = range(len(edited))
    before, after = (
        judge.of_images([around(clip, pixels[t], t) for t in frames]) @ text
        for pixels in (clip.frames, edited)
    )
    figures["frames_nearer_to_text"] = round(float((after > before).mean()), 3)
    outside = clip.alpha < 0.02
    figures["background_psnr"] = round(psnr(edited[outside], clip.frames[outside]), 2)
    return figures


def decomposition_figures(parted: Parted, rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Reconstruction, alpha, and the places of tracks, half of them on the emoji."""
    tracks = {layer: track_errors(parted, count // 2, rng, layer == "foreground") for layer in LAYERS}
    return {
        "seconds": round(parted.seconds),
        "psnr": round(reconstruction_psnr(parted), 2),
        "alpha_iou": round(alpha_iou(parted), 3),
        "tracks": tracks,
    }


def sheet(parted: Parted, edited: np.ndarray) -> list[list[Image.Image]]:
    """Source, reconstruction, alpha and edit at three times, and both atlases."""
    times = [len(edited) // 8, len(edited) // 2, len(edited) * 7 // 8]
    rendered = [render_frame(parted.found, t) for t in times]
    rows = [
        [Image.fromarray(parted.clip.frames[t]) for t in times], [pair[0] for pair in rendered],
        [pair[1] for pair in rendered], [Image.fromarray(edited[t]) for t in times],
    ]  # fmt: skip
    height = rows[0][0].height
    shown = []
    for layer in LAYERS:
        picture = atlas_picture(parted.found, layer)
        box = LayerMaps.of(parted.found, layer).box(picture.width)
        cropped = picture.crop(box)
        shown.append(cropped.resize((round(cropped.width * height / cropped.height), height)))
    return [[picture for row in rows[:2] for picture in row], [p for row in rows[2:] for p in row] + shown]


def main() -> None:
    """Parses the options, makes what is missing, measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--judge", type=Path, default=Path("deploy/models/judge"))
    parser.add_argument("--data", type=Path, default=Path("out/train/data"), help="artwork, from `npm pack`")
    parser.add_argument("--out", type=Path, default=Path("out/video-report"))
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=100_000, help="of each run, at most")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one per core")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        cv2.setNumThreads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = ArtifactStore((arguments.out / "cache").resolve().as_uri())
    models = FamilyModels(arguments.family, torch.device("cpu"), store)
    judge, art = Judge(arguments.judge), artwork.load(arguments.data)
    clips: list[dict[str, Any]] = []
    rows: list[list[Image.Image]] = []
    tracks: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.clips):
        clip, path, most = make_clip(seed, art), arguments.out / str(seed), arguments.iterations
        parted = take_apart(clip, path, models, most)
        figures = decomposition_figures(parted, np.random.default_rng(seed), NUM_TRACKS // arguments.clips)
        for layer, errors in figures.pop("tracks").items():
            tracks[layer] += errors
            figures[f"{layer}_track_median"] = round(float(np.median(errors)), 2)
        prompt = texts(clip, seed)["prompt"]
        edited = edit_clip(parted, path, models, seed, most)
        alone = edit_frames(clip, path, models, seed, most)
        figures |= edit_figures(parted, edited, alone, judge, prompt)
        clips.append({"seed": seed, "from": clip.noun, "to": prompt, **figures})
        print(json.dumps(clips[-1]), flush=True)
        rows += sheet(parted, edited)
    every = [error for errors in tracks.values() for error in errors]
    summary = {
        "num_tracks": len(every),
        "track_median": round(float(np.median(every)), 2),
        **{f"{layer}_track_median": round(float(np.median(tracks[layer])), 2) for layer in LAYERS},
        **{name: round(float(np.mean([c[name] for c in clips])), 3) for name in clips[0] if name in MEANS},
    }
    print(json.dumps(summary, indent=2))
    (arguments.out / "figures.json").write_text(
        json.dumps({"mean": summary, "clips": clips}, indent=2) + "\n"
    )
    side_by_side(*rows).save(arguments.out / "sheet.jpg", quality=85)


if __name__ == "__main__":
    main()
