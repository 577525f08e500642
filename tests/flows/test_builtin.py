"""A prediction in a new installation: nothing was trained, and no server is running."""

import csv
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from nucleus_unet.data.synthetic import draw_synthetic
from nucleus_unet.nuclei import match_nuclei


def test_the_first_command_of_a_new_user_finds_nuclei(place: Any, tmp_path: Path) -> None:
    image, nuclei = draw_synthetic("fluorescence", np.random.default_rng(3))
    (tmp_path / "mine").mkdir()
    cv2.imwrite(str(tmp_path / "mine" / "a.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    (tmp_path / "mine" / "b.png").write_bytes(b"no image")
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "mine" / "c.png"), cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
    options = ("--pixel-size", 0.5, "--labels", "ome-tiff")
    here, out = place.elsewhere(tmp_path / "home"), tmp_path / "out"
    done = here.nucleus("predict", tmp_path / "mine", "--out", out, *options)
    assert done.returncode == 1, done.stderr  # one image cannot be read
    assert done.stdout.endswith(f"1 of the images could not be read: see {out / 'images.csv'}\n")
    of = "best of revision [0-9a-f]{7}, trained on the 2018 Data Science Bowl, score 0\\.[0-9]{3} on "
    assert re.search(f"^model +the built-in model: {of}78 images", done.stdout, re.MULTILINE)
    match = match_nuclei(nuclei, tifffile.imread(out / "labels" / "a.ome.tif").astype(np.int32))
    assert match.tp[0] > 0.7 * match.true
    rows = [*csv.DictReader((out / "nuclei.csv").open())]
    assert sum(row["image"] == "a" for row in rows) == match.predicted
    assert all(float(row["area_um2"]) == float(row["area_px"]) / 4 for row in rows)
    a, c, b = csv.DictReader((out / "images.csv").open())
    assert (a["image"], a["state"], int(a["nuclei"])) == ("a", "done", match.predicted)
    assert (float(a["scale"]), float(c["scale"])) == (1, 0.5)
    true = np.kron(nuclei, np.ones((4, 4), np.int32))
    match = match_nuclei(true, tifffile.imread(out / "labels" / "c.ome.tif").astype(np.int32))
    assert match.tp[0] > 0.7 * match.true
    assert (b["image"], b["state"]) == ("b", "skipped")
    assert b["note"].startswith("the file is not a PNG")
