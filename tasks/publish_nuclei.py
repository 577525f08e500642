"""Write the nuclei for people and other programs: label images, overlays, a table and outlines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect.logging import get_run_logger

from nucleus_unet.data import load_image, originals, read_images
from nucleus_unet.engine import Stage
from nucleus_unet.files import write_atomically, writing
from nucleus_unet.nuclei import exports
from nucleus_unet.reports import PREDICTED_LEGEND, contact_sheet, overlay, overlay_png, short_name
from tasks.publish_submission import NO_SPACE
from tasks.reporting import uncached_task

OVERVIEW = 12
"""Largest number of images in ``overview.png``."""


@uncached_task("write label images, overlays and table")
def publish_nuclei(
    raws: Sequence[Path],
    images: Stage,
    encoded: Sequence[Stage],
    outlines: Sequence[exports.Outlines],
    folder: Path,
) -> None:
    """Write the nuclei of all images into a folder.

    Parameters
    ----------
    raws : sequence of Path
        The raw images, whose values the intensities are measured on.
    images : Stage
        The prepared images.
    encoded : sequence of Stage
        The encoded nuclei of each shard.
    outlines : sequence of str
        Formats of outlines to write in addition.
    folder : Path
        Gets ``labels/<id>.png`` (``.tif`` from 65,536 nuclei), ``overlays/<id>.png``, ``overview.png``
        and ``nuclei.csv``; for outlines ``outlines/<id>.geojson``, ``outlines/<id>.zip`` (ImageJ) and
        ``coco.json``.
    """
    label_files = {
        str(path.relative_to(stage.folder).with_suffix("")): path
        for stage in encoded
        for path in stage.folder.rglob("*")
        if path.suffix in (".png", ".tif")
    }
    entries = read_images(images.folder).entries
    rows: list[dict[str, Any]] = []
    tiles: list[tuple[str, NDArray[np.uint8]]] = []

    def write(name: str, content: bytes | str) -> None:
        with writing(folder / name, NO_SPACE):
            write_atomically(folder / name, content)

    for entry, values in originals(raws, entries):
        content = label_files[entry.id].read_bytes()
        write(f"labels/{entry.id}{label_files[entry.id].suffix}", content)
        labels = exports.decode_label_image(content)
        image = load_image(images.home, entry)
        write(f"overlays/{entry.id}.png", overlay_png(image, labels))
        if len(tiles) < OVERVIEW:
            title = f"{short_name(entry.id)}: {labels.max()} nuclei"
            tiles.append((title, overlay(image, labels, side_px=480)))
        rows += [{"image": entry.id} | row for row in exports.measurements(values, labels)]
        if "geojson" in outlines:
            write(f"outlines/{entry.id}.geojson", exports.geojson(labels))
        if "imagej" in outlines:
            write(f"outlines/{entry.id}.zip", exports.imagej(labels))
    write("nuclei.csv", exports.nuclei_csv(rows))
    write("overview.png", contact_sheet(tiles, PREDICTED_LEGEND))
    if "coco" in outlines:
        names = [Path(entry.source).name for entry in entries]
        if len(set(names)) < len(names):
            names = [f"{entry.id}{Path(entry.source).suffix}" for entry in entries]
        found = (exports.decode_label_image(label_files[e.id].read_bytes()) for e in entries)
        write("coco.json", exports.coco(zip(names, found, strict=True)))
    get_run_logger().info("wrote label images, overlays and nuclei.csv to %s", folder)
