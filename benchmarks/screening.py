"""Screen a change of the recipe: is it better on slides and sources that the training left out?

    python benchmarks/screening.py stage1_train.zip                              # best, unchanged
    python benchmarks/screening.py stage1_train.zip augmentation.stain_range=0.1 ...

Trains three networks for 1,000 steps. Each leaves out whole sources (an imaging kind at an image size)
and a third of the slides of the other sources. It then predicts some of the images that were left out,
without flips, with fixed cutoffs: as they are, reduced, enlarged, and, if they are fluorescence, with
some nuclei made dimmer than others. Prints the scores without and with the
change, and their difference with an interval over slides. Each change takes a quarter of an hour on
two cores. Trainings and scores are kept in the home, so an interrupted screening continues.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, cases
from curves import dimmed, magnified
from held_out import Predictor, pair_of
from numpy.typing import NDArray

from nucleus_unet.data import TrainingImages
from nucleus_unet.engine import EVENTS, EventLog, follow, home_folder, prepare_environment
from nucleus_unet.files import sha256_bytes, write_atomically
from nucleus_unet.network import configure, load_model, resolve
from nucleus_unet.nuclei import match_nuclei
from nucleus_unet.recipe import Recipe, digest_of, load_recipe
from nucleus_unet.reports import compare_scores

BUDGET = ("training.epochs=5", "training.steps_per_epoch=200")
FIXED = ("inference.tune=false", "inference.flips=false")
SPLITS = 3
LARGEST_SOURCE = 0.15
"""A source with a larger share of the images is never left out, because too little would remain."""
PREDICTED = 40
"""Images that each network predicts, as evenly from all sources as there are images."""
MOST_PIXELS = 2e6
AS_IS, DIMMED = "1", "dimmed"
MAGNIFICATIONS = {AS_IS: 1.0, "1/2": 0.5, "2": 2.0}
NOT_TRAINED = {"name", "inference"}
"""Parts of a recipe that the training does not use."""
VARIANTS = (*MAGNIFICATIONS, DIMMED)

Row = Mapping[str, Any]
"""The scores of one image and variant, as JSON values."""

HEAD = (
    "change",
    "score, new slides",
    "score, new sources",
    "AP at 0.50, new slides",
    "AP at 0.50, new sources",
    "reduced to 1/2",
    "enlarged to 2",
    "dimmed",
    "radius of dim nuclei",
    "radius bias, px",
    "missed",
    "invented",
    "split",
    "merged",
    "outline",
    "difference of the score",
)


@dataclass(frozen=True)
class Fold:
    """What one network trains on, and what it predicts."""

    training: Sequence[Case]
    predicted: Sequence[Case]
    sources: frozenset[str]
    """Sources that are left out."""


def folds(known: Sequence[Case]) -> Iterator[Fold]:
    by_source: dict[str, list[Case]] = defaultdict(list)
    for case in known:
        by_source[case.source].append(case)
    small = [s for s, own in by_source.items() if len(own) <= LARGEST_SOURCE * len(known)]
    turn = {source: place % SPLITS for place, source in enumerate(sorted(small, key=_order))}
    slides = sorted({case.slide for case in known}, key=_order)
    third = {slide: place % SPLITS for place, slide in enumerate(slides)}
    for number in range(SPLITS):
        sources = frozenset(source for source in turn if turn[source] == number)
        slides_out = {
            case.slide for case in known if case.source in sources or third[case.slide] == number
        }
        left = [case for case in known if case.slide in slides_out]
        training = [case for case in known if case.slide not in slides_out]
        yield Fold(training, _evenly(left)[:PREDICTED], sources)


def _order(name: str) -> str:
    return sha256_bytes(name.encode())


def _evenly(left: Sequence[Case]) -> list[Case]:
    """Sort cases so that the first ones come from as many sources and slides as possible."""
    by_source: dict[str, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    for case in sorted(left, key=lambda case: _order(case.sample.id)):
        by_source[case.source][case.slide].append(case)
    turns = [_in_turns([*slides.values()]) for slides in by_source.values()]
    return _in_turns(turns)


def _in_turns(lists: Sequence[Sequence[Case]]) -> list[Case]:
    return [case for row in zip_longest(*lists) for case in row if case is not None]


def train(recipe: Recipe, fold: Fold, folder: Path) -> Path:
    """Train, and return the ``model.keras``."""
    network = folder / "model.keras"
    if not network.exists():
        folder.mkdir(parents=True, exist_ok=True)
        reader = EventLog(folder / EVENTS)
        reader.new()
        training, watched = ([case.sample for case in s] for s in (fold.training, fold.predicted))
        job = (recipe, training, watched[:16], folder)
        for event in follow("nucleus_unet.network.training:train_network", *job, poll=reader.new):
            if event["event"] == "epoch":
                print(f"  epoch {event['epoch']}: {event['seconds']:.0f} s", flush=True)
    return network


def score(recipe: Recipe, network: Path, fold: Fold) -> Iterator[Row]:
    """Scores of each image and variant, as JSON values."""
    predictor = Predictor(load_model(network), recipe, _described(fold.training))
    for case in fold.predicted:
        pair = pair_of(case)
        shown = {name: magnified(pair, by) for name, by in MAGNIFICATIONS.items()}
        factors: list[float] = []
        if case.sample.kind == "fluorescence":
            draws = np.random.default_rng(int(_order(case.sample.id)[:8], 16))
            shown[DIMMED], of_nuclei = dimmed(pair, draws)
            factors = of_nuclei[1:].round(3).tolist()
        for variant, (varied, y_true) in shown.items():
            if y_true.size > MOST_PIXELS:
                continue
            scale = predictor.fitting_scale(varied)
            match = match_nuclei(y_true, predictor.labels(varied, scale=scale))
            radius = match.radius_difference_px
            yield {
                "id": case.sample.id,
                "slide": case.slide,
                "source": case.source,
                "new source": case.source in fold.sources,
                "variant": variant,
                "scale": scale,
                "ap": match.average_precision.tolist(),
                "losses": asdict(match.losses),
                "radius": [round(r, 2) if np.isfinite(r) else None for r in radius.tolist()],
                "factors": factors,
            }


def _described(training: Sequence[Case]) -> TrainingImages:
    labels = (np.maximum(case.sample.load()[1], 0) for case in training)
    areas = np.concatenate([np.bincount(one.ravel())[1:] for one in labels])
    low, middle, high = np.percentile(2 * np.sqrt(areas / np.pi), (5, 50, 95)).round(1).tolist()
    return TrainingImages(kinds={}, diameters_px=(low, middle, high))


def screened(change: Sequence[str], known: Sequence[Case]) -> list[Row]:
    """The scores with a change; kept in the home."""
    recipe = resolve(load_recipe("best", (*BUDGET, *FIXED, *change)))
    home = home_folder() / "screening"
    choices = recipe.model_dump(mode="json", exclude={"name"})
    kept = home / f"{digest_of(choices)[:12]}.json"
    if not kept.exists():
        rows: list[Row] = []
        for number, fold in enumerate(folds(known)):
            new = len(fold.training), len(fold.predicted), ", ".join(sorted(fold.sources))
            print(*change, "train on {}, predict {}, without {}".format(*new), flush=True)
            trained = digest_of([recipe.model_dump(mode="json", exclude=NOT_TRAINED), number])
            network = train(recipe, fold, home / trained[:12])
            rows += ({**row, "id": f"{number} {row['id']}"} for row in score(recipe, network, fold))
        write_atomically(kept, json.dumps(rows))
    found: list[Row] = json.loads(kept.read_text())
    return found


def table_row(change: Sequence[str], rows: Sequence[Row], base: Sequence[Row]) -> str:
    """A row of the table, in Markdown; scores are means over sources, so that none decides alone."""
    own = [row for row in rows if row["variant"] == AS_IS]
    sides = [[row for row in own if row["new source"] == new] for new in (False, True)]
    cells = [f"{_mean(side, number):.3f}" for number in (_score, _ap50) for side in sides]
    for variant in VARIANTS[1:]:
        varied = [row for row in rows if row["variant"] == variant]
        ids = {row["id"] for row in varied}
        plain = [row for row in own if row["id"] in ids]
        cells.append(f"{_mean(varied, _ap50) - _mean(plain, _ap50):+.3f}")
    dim, bright = (_radius_bias(rows, *limits) for limits in ((0, 0.25), (0.5, 1)))
    cells += [
        f"{dim - bright:+.2f}",
        f"{np.nanmedian(np.concatenate([_radii(r) for r in own])):+.2f}",
    ]
    cells += [f"{np.mean([row['losses'][cause] for row in own]):.3f}" for cause in own[0]["losses"]]
    before = {row["id"]: _score(row) for row in base if row["variant"] == AS_IS}
    slides = {row["id"]: row["slide"] for row in own}
    made = compare_scores(before, {row["id"]: _score(row) for row in own}, slides)
    cells.append(f"{made.difference:+.3f} [{made.low:+.3f}, {made.high:+.3f}]")
    return f"| {' '.join(change) or 'nothing'} | {' | '.join(cells)} |"


def _score(row: Row) -> float:
    return float(np.mean(row["ap"]))


def _ap50(row: Row) -> float:
    return float(row["ap"][0])


def _mean(rows: Sequence[Row], number: Callable[[Row], float]) -> float:
    by_source: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(number(row))
    return float(np.mean([np.mean(numbers) for numbers in by_source.values()]))


def _radii(row: Row) -> NDArray[np.float64]:
    return np.array(row["radius"], np.float64)  # None becomes not a number


def _radius_bias(rows: Sequence[Row], low: float, high: float) -> float:
    """Of nuclei that were dimmed by a factor in this range."""
    dimmed_ones = [row for row in rows if row["variant"] == DIMMED]
    radii = np.concatenate([_radii(row) for row in dimmed_ones])
    factors = np.concatenate([row["factors"] for row in dimmed_ones])
    return float(np.nanmedian(radii[(low <= factors) & (factors <= high)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("change", nargs="*", help="key=value of the recipe")
    chosen = parser.parse_args()
    prepare_environment()
    configure(resolve(load_recipe("best")).training.cpu_threads)
    known = cases(chosen.archive)
    base = screened((), known)
    changed = screened(chosen.change, known)
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for change, rows in (((), base), (chosen.change, changed)):
        print(table_row(change, rows, base))


if __name__ == "__main__":
    main()
