"""Does it gain anything to tune the cutoffs on validation images?

    python benchmarks/cutoffs.py stage1_train.zip                    # ten minutes on two cores
    python benchmarks/cutoffs.py stage1_train.zip --model RUN_ID

Predicts the images that the model does not know, without flips. Ten times it tunes the cutoffs on half
of the slides, as a training does, and scores the other half with these and with the fixed ones
of the recipe `best`. Prints how much better the tuned ones are.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cases import Case
from held_out import held_out, model_and_archive, pair_of

from nucleus_unet.engine import prepare_environment
from nucleus_unet.network.inference import predict_maps
from nucleus_unet.nuclei import match_nuclei, separate_nuclei
from nucleus_unet.recipe import Inference, load_recipe
from nucleus_unet.reports import tuned_keys
from nucleus_unet.reports.tuning import tune_inference

TRIALS = 10


def mean_score(own: Sequence[tuple[Case, Path]], inference: Inference) -> float:
    matches = (
        match_nuclei(pair_of(case)[1], separate_nuclei(np.load(maps), inference))
        for case, maps in own
    )
    return float(np.mean([match.score for match in matches]))


def main() -> None:
    chosen = model_and_archive(__doc__)
    prepare_environment()
    fixed = load_recipe("best", ["inference.flips=false"]).inference
    with tempfile.TemporaryDirectory() as folder:
        predicted: list[tuple[Case, Path]] = []
        for predictor, own in held_out(chosen.model, chosen.archive):
            recipe = predictor.recipe.model_copy(update={"inference": fixed})
            images = [pair_of(case)[0] for case in own]
            for case, maps in zip(own, predict_maps(predictor.model, images, recipe), strict=True):
                np.save(path := Path(folder, f"{case.sample.id}.npy"), maps)
                predicted.append((case, path))
        slides = sorted({case.slide for case, _ in predicted})
        gains = []
        for trial in range(TRIALS):
            half = set(np.random.default_rng(trial).permutation(slides)[::2].tolist())
            sides = [
                [one for one in predicted if (one[0].slide in half) == first]
                for first in (True, False)
            ]
            tuning, files = zip(*sides[0], strict=True)
            tuned = tune_inference([case.sample for case in tuning], files, fixed, lambda *_: None)
            before, after = (mean_score(sides[1], setting) for setting in (fixed, tuned))
            values = {key: getattr(tuned, key) for key in tuned_keys(2)}
            print(f"fixed {before:.4f}, tuned {after:.4f}: {values}", flush=True)
            gains.append(after - before)
    print(
        f"tuned minus fixed: {np.mean(gains):+.4f}, standard deviation {np.std(gains, ddof=1):.4f}"
    )


if __name__ == "__main__":
    main()
