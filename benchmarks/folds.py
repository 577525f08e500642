"""Score a model of several folds on all images, each by the network that does not know its slide.

    nucleus retrain --train stage1_train.zip --recipe best --folds 5
    python benchmarks/folds.py stage1_train.zip RUN_ID            # minutes after the training

Prints the scores with their interval over slides, and where the rest is lost: by imaging kind, by source
(kind and size of the images) and by diameter of the nuclei. With --set data.split=source in the training
every source was left out by the network that scores it, as an unfamiliar microscope.
`benchmarks/robustness.py --model RUN_ID` prints the curves of magnification and brightness.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case
from held_out import Predictor, held_out, pair_of

from nucleus_unet.engine import prepare_environment
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
        signed(table["radius_bias_px"]),
    ]


def signed(number: float | None) -> str:
    return "" if number is None else f"{number:+.2f}"


def print_scores(matches: Matches, known: Sequence[Case]) -> None:
    slides = {case.sample.id: case.slide for case in known}
    kinds = {case.sample.id: case.sample.kind for case in known}
    sources = {case.sample.id: case.source for case in known}
    print(markdown_table(["", *HEAD], [row("all images", matches, slides)]))
    for name, groups in (("imaging kind", kinds), ("source", sources)):
        found = []
        for group in sorted(set(groups.values())):
            own = {id_: match for id_, match in matches.items() if groups[id_] == group}
            found.append((group, own))
        rows = [row(group, own, slides) for group, own in found]
        means = [scores_table(own)["score"] for _, own in found]
        print(f"\nmean over each {name}: {np.mean(means):.3f}\n")
        print(markdown_table([name, *HEAD], rows))
    print()
    head = ["diameter of the nuclei, px", "nuclei", "AP at 0.50", "radius bias, px"]
    print(markdown_table(head, [*map(size_row, scores_table(matches)["by_size"])]))


def size_row(size: Mapping[str, Any]) -> list[str]:
    low, high = size["diameter_px"]
    return [
        f"{low} to {high}" if high else f"from {low}",
        str(size["nuclei"]),
        f"{size['average_precision']:.3f}",
        signed(size["radius_bias_px"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("run", help="id of the run of all folds")
    chosen = parser.parse_args()
    prepare_environment()
    parts, matches = [*held_out(chosen.run, chosen.archive)], dict[str, Match]()
    for predictor, own in parts:
        matches |= matched(predictor, own)
    known = [case for _, own in parts for case in own]
    print_scores(matches, known)


if __name__ == "__main__":
    main()
