"""Score a model of several folds on all images, each by the network that does not know its slide.

    nucleus retrain --train stage1_train.zip --recipe best --folds 5
    python benchmarks/folds.py stage1_train.zip RUN_ID                # minutes after the training
    python benchmarks/folds.py stage1_train.zip RUN_ID --sources 8    # and as many trainings

Prints, by imaging kind and by diameter of the nuclei, the scores, their interval over slides, and where
the rest is lost. With --sources the recipe is also trained without each of the largest sources (an
imaging kind at an image size) and scored on it, as on an unfamiliar microscope; these trainings are kept
in the home. `benchmarks/robustness.py --model RUN_ID` prints the curves of magnification and brightness.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import Case
from held_out import Predictor, held_out, pair_of
from screening import LARGEST_SOURCE, Fold, train

from nucleus_unet.data import KINDS
from nucleus_unet.engine import home_folder, prepare_environment
from nucleus_unet.files import sha256_bytes
from nucleus_unet.network import load_model
from nucleus_unet.nuclei import match_nuclei
from nucleus_unet.nuclei.scoring import Match
from nucleus_unet.reports import markdown_table, score_interval, scores_table

F1_AT = 4
"""Place of the threshold 0.70."""
CAUSES = ("missed", "invented", "split", "merged", "outline")
HEAD = (
    "images",
    "slides",
    "score",
    "interval",
    "AP at 0.50",
    "F1 at 0.70",
    *CAUSES,
    "radius bias, px",
)

Matches = Mapping[str, Match]


def matched(predictor: Predictor, own: Sequence[Case]) -> Matches:
    found = {}
    for case in own:
        image, y_true = pair_of(case)
        found[case.sample.id] = match_nuclei(y_true, predictor.labels(image))
    return found


def row(name: str, matches: Matches, slides: Mapping[str, str]) -> list[str]:
    table = scores_table(matches)
    own = {id_: slides[id_] for id_ in matches}
    low, high = score_interval({id_: match.score for id_, match in matches.items()}, own)
    half, seventy = table["by_threshold"][0], table["by_threshold"][F1_AT]
    numbers = (half["average_precision"], seventy["f1"], *(table["losses"][c] for c in CAUSES))
    return [
        name,
        str(len(matches)),
        str(len(set(own.values()))),
        f"{table['score']:.3f}",
        f"{low:.3f} to {high:.3f}",
        *(f"{number:.3f}" for number in numbers),
        f"{table['radius_bias_px']:+.2f}",
    ]


def print_scores(matches: Matches, known: Sequence[Case]) -> None:
    slides = {case.sample.id: case.slide for case in known}
    kinds = {case.sample.id: case.sample.kind for case in known}
    rows = [row("all", matches, slides)]
    for kind in KINDS:
        own = {id_: match for id_, match in matches.items() if kinds[id_] == kind}
        if own:
            rows.append(row(kind, own, slides))
    print(markdown_table(["kind", *HEAD], rows))
    head = ["diameter of the nuclei, px", "nuclei", "AP at 0.50", "radius bias, px"]
    print(markdown_table(head, [*map(size_row, scores_table(matches)["by_size"])]))


def size_row(size: Mapping[str, Any]) -> list[str]:
    low, high = size["diameter_px"]
    bias = size["radius_bias_px"]
    return [
        f"{low} to {high}" if high else f"from {low}",
        str(size["nuclei"]),
        f"{size['average_precision']:.3f}",
        "" if bias is None else f"{bias:+.2f}",
    ]


def print_sources(like: Predictor, known: Sequence[Case], count: int) -> None:
    """Train without each of the largest sources, and score it."""
    sizes = Counter(case.source for case in known)
    left_out = [s for s, n in sizes.most_common() if n <= LARGEST_SOURCE * len(known)][:count]
    slides, rows = {case.sample.id: case.slide for case in known}, []
    for source in left_out:
        own = [case for case in known if case.source == source]
        of_slides = {case.slide for case in own}
        others = [case for case in known if case.slide not in of_slides]
        print(f"train without {source}", flush=True)
        name = sha256_bytes(f"{like.recipe.digest()} {source}".encode())[:12]
        network = train(
            like.recipe, Fold(others, own, frozenset([source])), home_folder() / "sources" / name
        )
        predictor = Predictor(load_model(network), like.recipe, like.trained_on)
        rows.append(row(source, matched(predictor, own), slides))
    print(markdown_table(["left out", *HEAD], rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("run", help="id of the run of all folds")
    parser.add_argument("--sources", type=int, default=0, help="number of sources to leave out")
    chosen = parser.parse_args()
    prepare_environment()
    parts, matches = [*held_out(chosen.run, chosen.archive)], dict[str, Match]()
    for predictor, own in parts:
        matches |= matched(predictor, own)
    known = [case for _, own in parts for case in own]
    print_scores(matches, known)
    if chosen.sources:
        print_sources(parts[0][0], known, chosen.sources)


if __name__ == "__main__":
    main()
