"""Draw the picture of the manual that shows the built-in sample: `python docs/pictures.py`."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.synthetic import draw_synthetic
from nucleus_unet.reports.overlays import overlay

FOLDER = Path(__file__).parent / "images"
SEEDS = {"fluorescence": 8, "stained": 1}
CORNER_PX, SIDE_PX, GAP_PX = 180, 360, 4


def nuclei() -> NDArray[np.uint8]:
    """Two images of the built-in sample, each next to the same image with outlines."""
    gap = np.full((SIDE_PX, GAP_PX, 3), 255, np.uint8)
    tiles = []
    for kind, seed in SEEDS.items():
        image, labels = draw_synthetic(kind, np.random.default_rng(seed))
        image, labels = image[:CORNER_PX, :CORNER_PX], labels[:CORNER_PX, :CORNER_PX]
        for outlined in (np.zeros_like(labels), labels):
            tiles += [overlay(image, outlined, side_px=SIDE_PX), gap]
    return np.hstack(tiles[:-1])


if __name__ == "__main__":
    picture = cv2.cvtColor(nuclei(), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(FOLDER / "nuclei.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
