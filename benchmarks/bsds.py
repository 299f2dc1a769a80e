"""Segmentation without labels on BSDS500, beside scikit-image's and the published table: `python benchmarks/bsds.py BSDS500 --out DIR`.

Every method runs at several values of its scale parameter, on images of val with each of its `VARIANTS`, then on images of test with the
variant that had the best covering on val. A score's ODS is that of the value which was best on val for that score; in brackets that of the
value which was best on test, which is what the benchmark's own program prints. OIS takes each image's best value.

What is done is kept, one line an image, and not done again, so DIR is of one version of the methods; the table is of all that it holds.
Seconds are of processor time, all cores together and without the scoring, the median over the images (the first of a shape, which
compiles, hardly moves it). Kanezaki's network is trained once for all values: the seconds of one are those until it is reached.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from scipy.io import loadmat
from skimage.segmentation import felzenszwalb, slic

from jaxseg.cli import script
from jaxseg.data import images
from jaxseg.errors import InputError
from jaxseg.progress import progress
from jaxseg.region_metrics import RegionScores, region_scores, summarise
from jaxseg.unsupervised import METHODS, SCALES
from jaxseg.unsupervised.kanezaki import kanezaki_levels

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "felzenszwalb": ({"min_size": 100}, {"min_size": 500}),
    "kanezaki": ({"shrink": 4, "iterations": 100},),
    "skimage Felzenszwalb": ({"sigma": 0.8, "min_size": 100}, {"sigma": 0.8, "min_size": 500}),
}
"""Options to choose among on val; a method that is not named has its own only."""

PUBLISHED = """\
| gPb-owt-ucm | .59 / .65 | .83 / .86 | 1.69 / 1.48 |"""
"""Arbelaez, Maire, Fowlkes, Malik 2011, PAMI 33(5), table 2: BSDS500 test, ODS / OIS; the authors' own evaluation output, which comes with
BSDS500, says .588 / .647, .827 / .856, 1.69 / 1.48."""

Split = Literal["val", "test"]


class Contestant(NamedTuple):
    method: Callable[..., Any]  # (image [H,W,3] in 0..1, *, scale, options) -> [H,W]
    scale: str
    values: tuple[float, ...]
    options: dict[str, Any]

    def segment(self, image: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        """(label map, seconds) of each value."""
        once = self.method is METHODS["kanezaki"]
        levels = kanezaki_levels(jnp.asarray(image), [int(value) for value in self.values], **self.options) if once else None
        spent = 0.0
        for value in self.values:
            begun = time.process_time()
            if levels:
                label = np.asarray(next(levels))
            else:
                given = jnp.asarray(image) if self.method in METHODS.values() else image
                label, spent = np.asarray(self.method(given, **{self.scale: value}, **self.options)), 0.0
            spent += time.process_time() - begun
            yield label, spent


def contestants(name: str) -> list[Contestant]:
    """The method in each of its variants."""
    if name == "skimage SLIC":
        method, scale, values = partial(slic, start_label=0), "n_segments", (4, 8, 12, 20, 32, 64)
    elif name == "skimage Felzenszwalb":
        method, scale, values = felzenszwalb, "scale", (2000, 1000, 700, 400, 200, 100)
    else:
        (scale, values), method = SCALES[name], METHODS[name]
    if name == "kanezaki":  # of one training, which only takes labels away
        values = values[::-1]
    return [Contestant(method, scale, values, options) for options in VARIANTS.get(name, ({},))]


def people(source: Path, split: Split, image: str) -> list[np.ndarray]:
    """The label maps [H,W] of all who segmented the image."""
    return [person[0, 0]["Segmentation"] for person in loadmat(source / "groundTruth" / split / f"{image}.mat")["groundTruth"][0]]


def spread(source: Path, split: Split, count: int) -> list[str]:
    """The names of so many images, evenly spread over the sorted names."""
    names = sorted(path.stem for path in (source / "images" / split).glob("*.jpg"))
    if not 1 <= count <= len(names):
        raise InputError(
            f"{source}: asked for {count} images of {split}, has {len(names)}. Give the folder of BSDS500, and a number up to that."
        )
    return [names[i * len(names) // count] for i in range(count)]


def store(out: Path, name: str, split: Split, options: dict[str, Any]) -> Path:
    variant = "".join(f" {key}={value}" for key, value in options.items())
    return out / f"{name}{variant} {split}.jsonl".replace(" ", "_")


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """What is kept of each image; a line that was cut short by an interruption is left out."""
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.endswith("}"):
            yield json.loads(line)


def run(source: Path, out: Path, name: str, contestant: Contestant, split: Split, count: int) -> None:
    """Segments and scores the images that are not kept yet."""
    file = store(out, name, split, contestant.options)
    done = {row["image"]: tuple(row["values"]) for row in rows(file)}
    if done and set(done.values()) != {contestant.values}:
        raise InputError(f"{file}: is of other values of {contestant.scale} than {contestant.values}. Give another --out, or delete it.")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(file)))  # without a line that was cut short
    todo = [image for image in spread(source, split, count) if image not in done]
    with progress(file.stem, count, count - len(todo)) as advance, file.open("a") as kept:
        for image in todo:
            pixels = images.read_image(source / "images" / split / f"{image}.jpg").astype(np.float32) / 255
            truths, scores, seconds = people(source, split, image), [], []
            for label, spent in contestant.segment(pixels):
                seconds.append(spent)
                scores.append(region_scores(label, truths))
            row = {
                "image": image,
                "values": contestant.values,
                "seconds": seconds,
                "area": scores[0].area.tolist(),
                "best_iou": [np.round(score.best_iou, 6).tolist() for score in scores],
                "rand_index": [score.rand_index for score in scores],
                "variation_of_information": [score.variation_of_information for score in scores],
            }
            kept.write(json.dumps(row) + "\n")
            kept.flush()
            advance(1, note=image)


def kept_scores(file: Path, only: Collection[str] = ()) -> list[list[RegionScores]]:
    """Scores [image][value of the scale] of the images, or of some only."""
    return [
        [
            RegionScores(np.array(iou), np.array(row["area"]), rand, variation)
            for iou, rand, variation in zip(row["best_iou"], row["rand_index"], row["variation_of_information"], strict=True)
        ]
        for row in rows(file)
        if not only or row["image"] in only
    ]


def best_on_val(out: Path, name: str) -> Contestant | None:
    """The variant with the best covering on the images of val that all variants have segmented."""
    files = [store(out, name, "val", contestant.options) for contestant in contestants(name)]
    common = set.intersection(*({row["image"] for row in rows(file)} for file in files))
    if not common:
        return None
    coverings = [summarise(kept_scores(file, common)).covering.ods for file in files]
    return contestants(name)[int(np.argmax(coverings))]


def table_row(out: Path, name: str) -> str | None:
    """Covering, Rand index and variation of information on test, or None where nothing has run."""
    chosen = best_on_val(out, name)
    scores = kept_scores(store(out, name, "test", chosen.options)) if chosen else []
    if not chosen or not scores:
        return None
    val, test = summarise(kept_scores(store(out, name, "val", chosen.options))), summarise(scores)
    cells = []
    for score, digits in {"covering": 3, "rand_index": 3, "variation_of_information": 2}.items():
        at_val = getattr(summarise([[image[getattr(val, score).index]] for image in scores]), score).ods
        ods, ois, _ = getattr(test, score)
        cells.append(f"{at_val:.{digits}f} / {ois:.{digits}f} ({ods:.{digits}f})")
    kept = list(rows(store(out, name, "test", chosen.options)))
    seconds = np.median([row["seconds"] for row in kept])
    seen = len(list(rows(store(out, name, "val", chosen.options)))), len(kept)
    options = {chosen.scale: chosen.values[val.covering.index]} | chosen.options
    listed = ", ".join(f"{key} {value:g}" for key, value in options.items())
    return f"| {name} | {' | '.join(cells)} | {seconds:.2f} | {listed} | {seen[0]}, {seen[1]} |"


def main(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BSDS500")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    methods: tuple[str, ...] = (*METHODS, "skimage SLIC", "skimage Felzenszwalb"),
    val_images: int = 25,
    test_images: int = 200,
) -> None:
    """Runs what DIR does not hold yet, and prints the table.

    Args:
      source: the folder that holds images/{val,test} and groundTruth/{val,test}.
      out: where results are kept.
      methods: those to run; all that have run are in the table.
      val_images: images of val, evenly spread, to choose variant and scale on.
      test_images: images of test, evenly spread.
    """
    everything = [*METHODS, "skimage SLIC", "skimage Felzenszwalb"]
    if unknown := set(methods) - set(everything):
        raise InputError(f"no method {sorted(unknown)}; there are {', '.join(everything)}")
    out.mkdir(parents=True, exist_ok=True)
    for name in methods:
        for contestant in contestants(name):
            run(source, out, name, contestant, "val", val_images)
        chosen = best_on_val(out, name)
        assert chosen is not None
        run(source, out, name, chosen, "test", test_images)
    print("BSDS500 test: at the scale chosen on val / at each image's best (in brackets: at the one scale that is best on test)\n")
    print("| method | covering | probabilistic Rand index | variation of information | CPU s | chosen on val | images of val, test |")
    print("| --- | ---: | ---: | ---: | ---: | --- | ---: |")
    for name in everything:
        if row := table_row(out, name):
            print(row)
    print("\nPublished by Arbelaez et al. 2011, PAMI 33(5): the one scale best on test / each image's best\n")
    print("| method | covering | probabilistic Rand index | variation of information |\n| --- | ---: | ---: | ---: |")
    print(PUBLISHED)


if __name__ == "__main__":
    script(main)
