"""A prediction in a new installation: nothing was trained, and no server is running."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nucleus_unet.data.synthetic import draw_synthetic
from nucleus_unet.nuclei import match_nuclei


def test_the_first_command_of_a_new_user_finds_nuclei(place: Any, tmp_path: Path) -> None:
    image, nuclei = draw_synthetic("fluorescence", np.random.default_rng(3))
    cv2.imwrite(str(tmp_path / "mine.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    here = place.elsewhere(tmp_path / "home")
    done = here.nucleus("predict", tmp_path / "mine.png", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    of = "best, trained on the 2018 Data Science Bowl, score 0\\.[0-9]{3} on 78 images of other slides"
    assert re.search(f"^model +the built-in model: {of}$", done.stdout, re.MULTILINE)
    found = cv2.imread(str(tmp_path / "out" / "labels" / "mine.png"), cv2.IMREAD_UNCHANGED)
    assert found is not None
    match = match_nuclei(nuclei, found.astype(np.int32))
    assert match.tp[0] > 0.7 * match.true
