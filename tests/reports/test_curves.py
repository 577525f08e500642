from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.reports.curves import parallel_coordinates, training_curves

EPOCH = {
    "epoch": 1,
    "loss": -0.2,
    "dice": 0.3,
    "mean_iou": 0.5,
    "val_loss": -0.1,
    "val_dice": 0.25,
    "val_mean_iou": 0.45,
    "learning_rate": 0.01,
    "seconds": 9.0,
    "images_per_s": 88.0,
}


def pixels(png: bytes) -> NDArray[np.uint8]:
    decoded: Any = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return decoded[..., 2::-1]


def contains(png: bytes, colour: tuple[int, int, int]) -> bool:
    return bool((pixels(png) == colour).all(axis=-1).any())


def test_curves() -> None:
    png = training_curves([EPOCH, EPOCH | {"epoch": 2, "val_mean_iou": 0.6, "loss": -0.4}])
    assert pixels(png).shape == (500, 1200, 3)
    assert contains(png, (0, 0x72, 0xB2))
    assert contains(png, (0xD5, 0x5E, 0))
    assert png == training_curves([EPOCH, EPOCH | {"epoch": 2, "val_mean_iou": 0.6, "loss": -0.4}])


@pytest.mark.parametrize(
    "history",
    [
        [],
        [EPOCH],
        [EPOCH | {"val_mean_iou": float("nan"), "loss": float("inf")}],
        [{"epoch": 3, "loss": 1.0}],
        [EPOCH | {"epoch": epoch} for epoch in range(100)],
    ],
)
def test_curves_of_little_and_of_much(history: list[dict[str, float]]) -> None:
    assert pixels(training_curves(history)).shape == (500, 1200, 3)


def test_trials_on_parallel_axes() -> None:
    trials = [(("1", "x"), 0.25), (("1", "y"), 0.5)]
    colours = {"worst": (84, 1, 68), "best": (37, 231, 253)}  # the ends of viridis, as BGR

    def drawn(trials: list[tuple[tuple[str, str], float]]) -> dict[str, list[int]]:
        """The rows of the picture that have each colour."""
        png = np.frombuffer(parallel_coordinates(["a", "b"], trials), np.uint8)
        picture = cv2.imdecode(png, cv2.IMREAD_COLOR)
        assert picture is not None
        return {
            name: np.flatnonzero((picture == colour).all(-1).any(1)).tolist()
            for name, colour in colours.items()
        }

    rows = drawn(trials)
    # Both start at the value that they share; from there the better one ends on top.
    assert min(rows["best"]) < min(rows["worst"]) < max(rows["best"]) < max(rows["worst"])
    alone, none = drawn(trials[:1]), drawn([])
    assert alone["worst"]
    assert not alone["best"]
    assert none == {"worst": [], "best": []}
