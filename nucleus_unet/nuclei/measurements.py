"""Measure nuclei: position, size, shape and intensity, as a table."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import regionprops_table

from nucleus_unet.data import Channels, safe_cell
from nucleus_unet.nuclei.exports import Row

COLUMNS = (
    *("image", "nucleus", "x_px", "y_px", "left_px", "top_px", "width_px", "height_px"),
    *("touches_edge", "confidence", "area_px", "diameter_px", "perimeter_px"),
    *("x_um", "y_um", "area_um2", "diameter_um", "perimeter_um"),
    *("solidity", "eccentricity", "orientation_deg", "mean_intensity"),
)
"""Columns that every table has; those of the channels follow."""
IMAGE_COLUMNS = (
    *("image", "file", "state", "width_px", "height_px", "pixel_size_um"),
    *("scale", "nuclei", "median_diameter_px", "uncertainty", "note"),
)
"""Columns of the table of images."""
_SHAPE = {
    "label": "nucleus",
    "centroid-1": "x_px",
    "centroid-0": "y_px",
    "bbox-1": "left_px",
    "bbox-0": "top_px",
    "area": "area_px",
    "equivalent_diameter_area": "diameter_px",
    "perimeter": "perimeter_px",
    "solidity": "solidity",
    "eccentricity": "eccentricity",
}
"""Names of measurements that scikit-image makes: its own, and those of the table."""
_WHOLE = ("nucleus", "left_px", "top_px", "width_px", "height_px", "touches_edge")
"""Columns of whole numbers."""
_IN_UM = {"x_px": 1, "y_px": 1, "area_px": 2, "diameter_px": 1, "perimeter_px": 1}
"""Measurements that the table also has in µm, and the power of the pixel size in each."""


def measure_nuclei(
    labels: NDArray[np.integer],
    channels: Channels,
    confidence: NDArray[np.float32],
    pixel_size_um: float | None = None,
) -> list[Row]:
    """Measure each nucleus of an image.

    Parameters
    ----------
    labels : (H, W) int
        0 background, 1..n one nucleus each.
    channels : Channels
        The values of the image.
    confidence : (n,) float32
        Of each nucleus, as `rated_nuclei` gives it.
    pixel_size_um : float, optional
        Side of a pixel in µm, if it is known.

    Returns
    -------
    list of Row
        One row for each nucleus, with these keys:

        - ``nucleus``: its label,
        - ``x_px``, ``y_px``: its centre in pixels; (0, 0) is the centre of the image's first pixel,
        - ``left_px``, ``top_px``, ``width_px``, ``height_px``: its bounding box in whole pixels,
        - ``touches_edge``: 1 if it has a pixel at the edge of the image, else 0,
        - ``confidence``: that of `rated_nuclei`, 0 to 1,
        - ``area_px``: its number of pixels,
        - ``diameter_px``: of the circle with the same area,
        - ``perimeter_px``: length of its outline through the centres of its outer pixels,
        - ``x_um``, ``y_um``, ``area_um2``, ``diameter_um``, ``perimeter_um``: the same in µm; None if
          the pixel size is not known,
        - ``solidity``: its share of its convex hull,
        - ``eccentricity``: of the ellipse with the same moments; 0 for a circle, close to 1 for a line,
        - ``orientation_deg``: of that ellipse's long axis, from 0, which is vertical, to 90 or -90,
          counter-clockwise,
        - ``mean_intensity``: mean of its finite values over its pixels, and over the channels that
          were segmented; NaN without any,
        - ``mean_<channel>``: the same of each channel of the file, if there are several.
    """
    wanted = sorted({name.partition("-")[0] for name in _SHAPE} | {"orientation"})
    image = np.stack([*channels.planes.values()], axis=-1)
    found = regionprops_table(labels, image, properties=wanted, extra_properties=[_finite_mean])
    height, width = labels.shape
    means = {name: found[f"_finite_mean-{at}"] for at, name in enumerate(channels.planes)}
    segmented = np.ma.masked_invalid([means[name] for name in channels.segmented])
    measured = {ours: found[theirs] for theirs, ours in _SHAPE.items()}
    top, left, bottom, right = (found[f"bbox-{side}"] for side in range(4))
    at_edge = (top == 0) | (left == 0) | (bottom == height) | (right == width)
    measured |= {
        "width_px": right - left,
        "height_px": bottom - top,
        "touches_edge": at_edge.astype(int),
        "confidence": confidence.astype(float),
        **{_in_um(key): measured[key] * (pixel_size_um or 1) ** n for key, n in _IN_UM.items()},
        "orientation_deg": np.degrees(found["orientation"]),
        "mean_intensity": segmented.mean(0).filled(np.nan),
    }
    if len(means) > 1:
        measured |= {f"mean_{name}": mean for name, mean in means.items()}
    rows = zip(*(column.tolist() for column in measured.values()), strict=True)
    unknown = {} if pixel_size_um else dict.fromkeys(map(_in_um, _IN_UM))
    return [dict(zip(measured, row, strict=True)) | unknown for row in rows]


def _in_um(key: str) -> str:
    """The name of a measurement in µm."""
    return key.replace("_px", "_um2" if _IN_UM[key] == 2 else "_um")


def _finite_mean(pixels: NDArray[np.bool_], values: NDArray[Any]) -> float:
    """Mean of the finite values of a nucleus in its bounding box; NaN if there are none."""
    finite = values[pixels & np.isfinite(values)]
    return float(finite.mean()) if finite.size else np.nan


def nuclei_csv(rows: Sequence[Row]) -> str:
    """Format rows of `measure_nuclei`, each with its ``image``, as CSV with seven significant digits.

    An apostrophe comes before text that a spreadsheet would take for a formula.
    """
    return table_csv(_columns(rows), rows)


def images_csv(rows: Sequence[Row]) -> str:
    """Format rows with the `IMAGE_COLUMNS` as CSV, as `nuclei_csv` does."""
    return table_csv(IMAGE_COLUMNS, rows)


def nuclei_parquet(rows: Sequence[Row]) -> bytes:
    """Format the same rows as Parquet, with all digits."""
    import pandas as pd

    columns = _columns(rows)
    text = dict.fromkeys(["image"], "str")
    numbers = dict.fromkeys(columns, "float64") | dict.fromkeys(_WHOLE, "int64") | text
    return bytes(pd.DataFrame(rows, columns=columns).astype(numbers).to_parquet(index=False))


def _columns(rows: Sequence[Row]) -> list[str]:
    """Those of every table, then those of the channels."""
    return [*dict.fromkeys((*COLUMNS, *(key for row in rows for key in row)))]


def table_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Format rows with these columns as CSV, as `nuclei_csv` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({column: _cell(column) for column in columns})
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return safe_cell(value) if isinstance(value, str) else value
