"""Do the words' attention maps lie where the things are? "A left of B", by the maps' centres of mass.

`make attention-report` makes images of held-out prompts through the services, asks a judge CLIP that guided
nothing in which of them both things are there (the prompt among the first 5 % beside 124 impostors, one or
both nouns swapped), and reports in how many of those each noun's map has its centre of mass on its half.
Writes figures.json and attention-report.png; goes on where it was stopped.
"""

import argparse
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sfumato.trainer.scenes import is_held_out
from sfumato.trainer.vocabulary import COLOURS, EMOJI
from sfumato_client import Client
from sfumato_client.attention_maps import WordMaps, centre_of_mass, draw_sheet
from sfumato_client.requests import GenerateOptions
from sfumato_client.results import GenerateResult
from sfumato_client.stack import local_stack
from tests.bench.judge import Judge

SEED, NUM_IMPOSTORS, FIRST_SHARE, NUM_SHOWN, AIM = 60_000, 124, 0.05, 6, 0.8
OPTIONS: GenerateOptions = {"guidance_scale": 5.0, "num_inference_steps": 20, "attention_maps": {}}
THREADS = {f"SFUMATO_{service}_NUM_THREADS": "1" for service in ("ENCODER", "DECODER", "DENOISER")}


@dataclass(frozen=True)
class Pair:
    """Two things side by side on a background that training never shows either of them on."""

    left: str
    right: str
    colour: str

    @property
    def prompt(self) -> str:
        return f"{with_article(self.left)} left of {with_article(self.right)} on a {self.colour} background"


def with_article(noun: str) -> str:
    """As the captions have it."""
    if noun.endswith("ies") or noun == "fire":
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def held_out_pairs(count: int) -> list[Pair]:
    """Different pairs, always the same; fewer where there are not so many."""
    pairs = [
        Pair(EMOJI[left].noun, EMOJI[right].noun, colour)
        for colour in COLOURS
        for left in range(len(EMOJI))
        for right in range(len(EMOJI))
        if left != right and is_held_out(left, colour) and is_held_out(right, colour)
    ]
    order = np.random.default_rng(SEED).permutation(len(pairs))
    return [pairs[index] for index in order[:count]]


def impostors(pair: Pair) -> list[str]:
    """Prompts with one noun or both swapped, the rest as it is."""
    nouns = [emoji.noun for emoji in EMOJI if emoji.noun not in (pair.left, pair.right)]
    rng = np.random.default_rng(SEED)
    prompts: dict[str, None] = {}
    while len(prompts) < NUM_IMPOSTORS:
        left, right = (str(noun) for noun in rng.choice(nouns, 2, replace=False))
        swapped = (Pair(left, pair.right, pair.colour), Pair(pair.left, right, pair.colour),
                   Pair(left, right, pair.colour))  # fmt: skip
        prompts[swapped[int(rng.integers(3))].prompt] = None
    return list(prompts)


def both_are_there(judge: Judge, image: Image.Image, pair: Pair) -> bool:
    """Whether the judge ranks the prompt within the first 5 % among it and its impostors."""
    texts = [pair.prompt, *impostors(pair)]
    scores = (judge.of_images([image]) @ judge.of_texts(texts).T)[0]
    rank = 1 + int((scores > scores[0]).sum())
    return rank <= FIRST_SHARE * len(texts)


def generate(client: Client, pair: Pair, seed: int, file: Path) -> dict[str, Any]:
    """Makes one image; the record of it, and beside it the image and the sheet of maps."""
    result: GenerateResult = client.generate(pair.prompt, seed=seed, **OPTIONS)
    maps = result.attention[0]
    file.write_bytes(result.images[0].data)
    draw_sheet(result.images[0].data, maps).save(file.with_suffix(".maps.png"))
    # "left of" parts the nouns, so that a word of both ("face") is found in its own.
    middle = maps.words.index("of")
    halves = (WordMaps(maps.words[part], maps.maps[part], maps.step, maps.num_steps)
              for part in (slice(middle), slice(middle, None)))  # fmt: skip
    centres = [
        centre_of_mass(half.of(noun))[0] for half, noun in zip(halves, (pair.left, pair.right), strict=True)
    ]
    return {"prompt": pair.prompt, "seed": seed, "left_x": centres[0], "right_x": centres[1]}


def figures_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over the images in which the judge sees both things, and over all."""

    def shares(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        if not chosen:
            return {"images": 0}
        right = [(record["left_x"] < 0.5, record["right_x"] > 0.5) for record in chosen]
        return {
            "images": len(chosen),
            "share_of_words_on_the_correct_half": round(float(np.mean(right)), 4),
            "share_of_images_with_both_words_on_the_correct_half": round(float(np.all(right, 1).mean()), 4),
            "share_of_images_with_left_word_left_of_right_word": round(
                float(np.mean([record["left_x"] < record["right_x"] for record in chosen])), 4
            ),
        }

    seen = [record for record in records if record["both_are_there"]]
    return {"aim": AIM, "both_are_there": shares(seen), "all": shares(records)}


def draw(records: list[dict[str, Any]], out: Path) -> None:
    """The first few sheets of maps, those in which the judge sees both things before the others."""
    shown = sorted(records, key=lambda record: not record["both_are_there"])[:NUM_SHOWN]
    sheets = [Image.open(out / f"{record['seed']}.maps.png") for record in shown]
    if not sheets:
        return
    width, height = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    whole, top = Image.new("RGB", (width, height), "white"), 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    whole.save(out / "attention-report.png")


def main() -> None:
    """Parses the options, generates what is missing, judges, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--judge", type=Path, default=Path("deploy/models/judge"))
    parser.add_argument("--images", type=int, default=100, help="How many prompts.")
    parser.add_argument("--out", type=Path, default=Path("out/attention-report"))
    arguments = parser.parse_args()
    judge = Judge(arguments.judge)  # first: a judge that is missing is said before hours of work
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "images.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    done = {record["seed"]: record for record in map(json.loads, lines)}
    pairs = dict(enumerate(held_out_pairs(arguments.images), SEED))
    missing = [seed for seed, pair in pairs.items() if done.get(seed, {}).get("prompt") != pair.prompt]
    if missing:
        with (
            tempfile.TemporaryDirectory() as logs,
            local_stack(arguments.family, log_dir=Path(logs), settings=THREADS) as stack,
            Client(stack.target) as client,
            log.open("a") as written,
        ):
            for seed in tqdm(missing, "images"):
                done[seed] = generate(client, pairs[seed], seed, arguments.out / f"{seed}.png")
                written.write(json.dumps(done[seed]) + "\n")
                written.flush()
    records = [done[seed] for seed in pairs]
    for record in tqdm(records, "judging"):
        image = Image.open(io.BytesIO((arguments.out / f"{record['seed']}.png").read_bytes())).convert("RGB")
        record["both_are_there"] = both_are_there(judge, image, pairs[record["seed"]])
    figures = figures_of(records)
    (arguments.out / "figures.json").write_text(json.dumps({**figures, "images": records}, indent=2) + "\n")
    draw(records, arguments.out)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
