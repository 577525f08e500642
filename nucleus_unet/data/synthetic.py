"""Draw the built-in sample: synthetic images of several imaging kinds, in Kaggle's layout.

Nuclei are drawn into labels and into a map of stain, which adds up where nuclei overlap. A fluorescence
image shows the stain as light on black. A bright-field image shows the light that the stain does not
absorb (Beer-Lambert law). Sizes, colours, counts and noise are like those measured on BBBC038v1.
"""

import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from nucleus_unet.data.masks import relabel
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes

_Float = NDArray[np.float32]
_Labels = NDArray[np.int32]
_Size = tuple[int, int]

SYNTHETIC_KINDS = ("fluorescence", "tissue", "stained", "brightfield")

# The kinds of successive images, as positions in SYNTHETIC_KINDS. Rare kinds are more frequent than in
# the real data set.
_TURNS = (0, 2, 0, 1, 0, 2, 3, 0, 1, 2, 0, 1)
# Position in _TURNS of the training image with few nuclei, and of the test image without nuclei.
_FEW, _BLANK = 4, 2

# Colours of background and nuclei (RGB) of stained images: purple, deep purple, white, pink.
_PALETTES = (
    ((178, 159, 207), (116, 70, 193)),
    ((168, 144, 201), (96, 38, 183)),
    ((209, 212, 219), (128, 70, 160)),
    ((226, 188, 211), (116, 76, 154)),
)
_SPLITS = ("stage1_train", "stage1_test")
_MARGIN = 48
_SLIVER_PX = 12


def write_synthetic(
    folder: Path,
    *,
    seed: int = 0,
    train: int = 48,
    test: int = 8,
    names: tuple[str, str] = _SPLITS,
) -> tuple[Path, Path]:
    """Write the built-in sample, a data set in the layout that Kaggle publishes.

    Parameters
    ----------
    folder : Path
        Output folder, which must be empty or not exist. It is created completely or not at all.
    seed : int, optional
        Seed of the images, 0 or more. Equal seeds give equal bytes with the same versions of NumPy
        and OpenCV.
    train, test : int, optional
        Number of training and of test images. A larger data set begins with the images of a smaller
        one, because every image has a random generator of its own.
    names : tuple of two str, optional
        Names of the two folders.

    Returns
    -------
    tuple of Path
        ``folder/stage1_train`` with images (RGBA) and masks (8-bit gray, 0 and 255, one nucleus
        each), and ``folder/stage1_test`` with images.

    Raises
    ------
    NucleusError
        If the folder is not empty or cannot be written.

    Notes
    -----
    Some training images have only one to three nuclei. The third test image has no nuclei.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and any(folder.iterdir()):
            raise NucleusError(f"{folder}: the folder is not empty. Choose another for the sample.")
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for split, count in enumerate((train, test)):
                (temporary / names[split]).mkdir()
                for index in range(count):
                    _write_sample(temporary / names[split], seed, split, index)
            temporary.chmod(0o755)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise NucleusError(
            f"{folder}: the sample cannot be written ({error.strerror}). Choose another folder."
        ) from error
    return folder / names[0], folder / names[1]


def draw_synthetic(
    kind: str, rng: Generator, density: float = 1.0
) -> tuple[NDArray[np.uint8], _Labels]:
    """Draw one image and its labels.

    Parameters
    ----------
    kind : str
        One of `SYNTHETIC_KINDS`:

        - ``fluorescence``: sparse bright nuclei on black,
        - ``tissue``: crowded bright nuclei on black, uneven and partly out of focus,
        - ``stained``: stained nuclei on white, pink or purple,
        - ``brightfield``: gray cells with dark nuclei on white.
    rng : Generator
        Source of all random numbers.
    density : float, optional
        Number of nuclei as a share of the usual number of the kind; 0 gives an image without nuclei.

    Returns
    -------
    image : (H, W, 3) uint8
        RGB.
    labels : (H, W) int32
        0 is background, and each number from 1 to n is one nucleus of at least 12 pixels.
    """
    draw = {
        "fluorescence": _fluorescence,
        "tissue": _tissue,
        "stained": _stained,
        "brightfield": _brightfield,
    }[kind]
    image, labels = draw(rng, density)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), labels


def _fluorescence(rng: Generator, density: float) -> tuple[_Float, _Labels]:
    """Nuclei of similar size on black, with a faint halo; a few are much brighter than the others."""
    size, radius, usual = (
        ((256, 256), rng.uniform(4.8, 9), rng.integers(8, 60)),
        ((260, 347), rng.uniform(7, 11), rng.integers(20, 60)),
        ((360, 360), rng.uniform(19, 25), rng.integers(18, 30)),
    )[rng.choice(3, p=(0.65, 0.15, 0.2))]
    centers, radii = _place(size, density * usual, radius, rng, spacing=rng.uniform(0.8, 1.1))
    labels, stain = _draw(size, centers, radii, rng, spread=rng.uniform(0.15, 0.5))
    light = rng.uniform(18, 32) if radius > 15 else rng.uniform(35, 120)
    signal = _blur(stain * _chromatin(size, radius, rng), rng.uniform(0.6, 1.4))
    signal += rng.uniform(0.02, 0.08) * _blur(stain, 2 * radius)
    return _expose(signal, light, rng.uniform(2, 14), rng), labels


def _tissue(rng: Generator, density: float) -> tuple[_Float, _Labels]:
    """Crowded nuclei in a region of varying sharpness and light, with others out of focus below."""
    size = ((256, 256), (360, 360), (384, 512))[rng.choice(3, p=(0.5, 0.25, 0.25))]
    radius = rng.uniform(5.5, 8.5)
    usual = size[0] * size[1] / radius**2 * rng.uniform(0.04, 0.09)
    region = _noise(size, max(size) / 2, rng) + rng.uniform(0.2, 1.2)
    centers, radii = _place(size, density * usual, radius, rng, spacing=0.85, region=region)
    labels, stain = _draw(size, centers, radii, rng, spread=0.35)
    below = _place(size, density * usual / 2, radius * 1.3, rng, spacing=0.6, region=region)
    _, ghosts = _draw(size, *below, rng, spread=0.3)
    stain *= _chromatin(size, radius, rng)
    unsharp = 1 / (1 + np.exp(-2 * (_noise(size, max(size) / 2, rng) - 0.8)))
    signal = _blur(stain, 0.8) * (1 - unsharp) + _blur(stain, radius / 3) * unsharp
    signal += rng.uniform(0.15, 0.45) * _blur(ghosts, radius / 1.5) + 0.12 * _blur(stain, 20)
    return _expose(signal, rng.uniform(35, 90), rng.uniform(3, 10), rng, uneven=0.35), labels


def _stained(rng: Generator, density: float) -> tuple[_Float, _Labels]:
    """Pale and dense stained nuclei, between fibres and nuclei that are out of focus."""
    size = ((256, 320), (512, 640))[rng.choice(2, p=(0.85, 0.15))]
    radius = rng.choice((rng.uniform(6, 9), rng.uniform(9, 13), rng.uniform(19, 27)))
    usual = min(size[0] * size[1] / radius**2 * rng.uniform(0.02, 0.1), 150)
    region = _noise(size, 2 * radius, rng) + 0.8
    slim = rng.uniform(1.3, 4)
    centers, radii = _place(size, density * usual, radius, rng, spacing=0.9, region=region)
    labels, stain = _draw(
        size, centers, radii, rng, spread=0.45, slim=slim, rim=rng.uniform(0.8, 1.2)
    )
    below = _place(size, density * usual / 3, radius, rng, spacing=0.8, region=region)
    _, ghosts = _draw(size, *below, rng, spread=0.3, slim=slim)
    stain *= _chromatin(size, radius, rng, contrast=2.2)
    strings = np.exp(-((_noise(size, 24, rng) / 0.15) ** 2)) * _noise(size, 16, rng)
    depth = _blur(stain, rng.uniform(0.8, 1.3)) + rng.uniform(0.1, 0.5) * _blur(ghosts, radius / 3)
    depth += (
        0.03 * _blur(_noise(size, 3, rng), 1)
        + 0.08 * _blur(stain, radius)
        + 0.07 * strings
        + 0.03 * _noise(size, 30, rng)
    )
    background, nucleus = np.array(_PALETTES[rng.integers(4)], np.float32) + rng.normal(0, 4, 3)
    image = background * (nucleus / background) ** depth[..., None]
    image *= 1 + 0.03 * _noise(size, max(size) / 2, rng)[..., None]
    return image + rng.normal(0, rng.uniform(0.5, 1.8), image.shape), labels


def _brightfield(rng: Generator, density: float) -> tuple[_Float, _Labels]:
    """Large pale cells in overlapping groups, each with one small dark nucleus."""
    size, radius = (360, 360), rng.uniform(5, 8)
    region = _noise(size, 60, rng) - 0.2
    cell = radius * rng.uniform(3.2, 4.2)
    centers, cells = _place(size, density * rng.integers(14, 40), cell, rng, 0.55, region)
    _, bodies = _draw(size, centers, cells, rng, spread=0.35, ragged=3.0, rim=0.9)
    nuclei = (radius * np.exp(rng.normal(0, 0.15, len(centers)))).astype(np.float32)
    labels, stain = _draw(size, centers, nuclei, rng, spread=0.2, slim=1.2)
    depth = 0.3 * _blur(bodies * (1 + 0.15 * _noise(size, 4, rng)), 0.8) + 0.65 * _blur(stain, 0.8)
    light = rng.uniform(222, 238) * (1 + 0.02 * _noise(size, 200, rng))
    image = light * np.exp(-depth) + rng.normal(0, 1.5, size)
    return np.repeat(image[..., None], 3, axis=2), labels


def _place(
    size: _Size,
    count: float,
    radius: float,
    rng: Generator,
    spacing: float,
    region: _Float | None = None,
) -> tuple[_Float, _Float]:
    """Draw about `count` centers (n, 2), as x and y, and radii (n,).

    The distance of two centers is at least `spacing` times the sum of their radii. If a `region` is
    given, centers lie where it is positive or, if that is less than half of the image, above its
    median. Centers may lie slightly outside the image, whose border then cuts the nucleus.
    """
    wanted = max(round(count), 1) if count > 0 else 0
    candidates = rng.uniform(-0.4 * radius, np.array(size[::-1]) + 0.4 * radius, (wanted * 12, 2))
    radii = radius * np.exp(rng.normal(0, 0.15, len(candidates)))
    if region is not None:
        x, y = np.clip(candidates.astype(int), 0, np.array(size[::-1]) - 1).T
        inside = region[y, x] > min(0.0, float(np.median(region)))
        candidates, radii = candidates[inside], radii[inside]
    kept: list[int] = []
    for i, (center, reach) in enumerate(zip(candidates, radii, strict=True)):
        gaps = np.hypot(*(candidates[kept] - center).T)
        if len(kept) < wanted and (gaps >= spacing * (radii[kept] + reach)).all():
            kept.append(i)
    return candidates[kept].astype(np.float32), radii[kept].astype(np.float32)


def _draw(
    size: _Size,
    centers: _Float,
    radii: _Float,
    rng: Generator,
    *,
    spread: float,
    slim: float = 1.5,
    ragged: float = 1.0,
    rim: float = 0.55,
) -> tuple[_Labels, _Float]:
    """Draw nuclei into labels and into a map of stain.

    Where nuclei overlap, the first keeps the pixels in the labels, and the stain adds up. `spread` is
    the standard deviation of the logarithm of a nucleus' stain, `slim` the largest ratio of length to
    width, `ragged` how irregular the outlines are, and `rim` the stain at the edge.
    """
    labels = np.zeros((size[0] + 2 * _MARGIN, size[1] + 2 * _MARGIN), np.int32)
    stain = np.zeros(labels.shape, np.float32)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    order = np.arange(2, 7)
    for number, (center, radius) in enumerate(zip(centers, radii, strict=True), start=1):
        waves = rng.normal(0, 0.08 * ragged / order) * np.sin(
            np.outer(angle, order) + rng.uniform(0, 2 * np.pi, len(order))
        )
        length, tilt = np.sqrt(rng.uniform(1, slim)), rng.uniform(0, np.pi)
        axes = np.array([np.cos(angle) * length, np.sin(angle) / length])
        turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
        outline = (radius * (1 + waves.sum(1)) * (turn @ axes)).T + center + _MARGIN
        outline = np.clip(outline, 1, np.array(labels.shape[::-1]) - 2)
        x, y = (corner := np.floor(outline.min(0)).astype(int))
        width, height = np.ceil(outline.max(0)).astype(int) - corner + 1
        window = np.s_[y : y + height, x : x + width]
        shape = np.zeros((height + 2, width + 2), np.uint8)
        points = np.rint((outline - corner + 1) * 16).astype(np.int32)
        cv2.fillPoly(shape, [points], 1, shift=4)
        depth = cv2.distanceTransform(shape, cv2.DIST_L2, 3)[1:-1, 1:-1]
        free = (depth > 0) & (labels[window] == 0)
        amount = np.exp(rng.normal(0, spread))
        if 2 * free.sum() >= (depth > 0).sum():
            labels[window][free] = number
            dome = rim + (1 - rim) * np.minimum(depth / (0.6 * radius), 1)
            stain[window] += np.float32(amount) * dome * (depth > 0)
    inner = np.s_[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    labels, stain = labels[inner], stain[inner]
    areas = np.bincount(labels.ravel())
    return relabel(np.where(areas[labels] < _SLIVER_PX, 0, labels)), stain


def _chromatin(size: _Size, radius: float, rng: Generator, contrast: float = 1.0) -> _Float:
    """Texture inside nuclei as factors around 1: small grains and larger clumps."""
    grains = 0.10 * _noise(size, 2.5, rng) + 0.12 * _noise(size, radius / 2.5, rng)
    return np.maximum(1 + contrast * grains, 0.1)


def _expose(
    signal: _Float, light: float, black: float, rng: Generator, uneven: float = 0.15
) -> _Float:
    """Simulate a camera: uneven light, black level, shot noise and readout noise."""
    lamp = np.exp(uneven * _noise(signal.shape, max(signal.shape) / 2, rng))
    image = black * (1 + 0.1 * _noise(signal.shape, 60, rng)) + light * lamp * signal
    noise = rng.uniform(0.3, 0.8) + rng.choice((0.05, 0.25), p=(0.8, 0.2)) * np.sqrt(image)
    image += noise * rng.standard_normal(signal.shape)
    return np.repeat(image[..., None], 3, axis=2)


def _noise(size: tuple[int, ...], scale_px: float, rng: Generator) -> _Float:
    """Smooth noise (H, W) with a standard deviation of about 1 and features of `scale_px` pixels."""
    height, width = size
    grid = rng.standard_normal((int(height / scale_px) + 3, int(width / scale_px) + 3))
    wide = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return wide.astype(np.float32, copy=False)


def _blur(image: _Float, sigma_px: float) -> _Float:
    blurred = cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    return blurred.astype(np.float32, copy=False)


def _write_sample(folder: Path, seed: int, split: int, index: int) -> None:
    """Write the image of one sample and, in the training split, its masks."""
    rng = np.random.default_rng((seed, split, index))
    few, blank = split == 0 and index % 12 == _FEW, split == 1 and index == _BLANK
    density = 0.0 if blank else 0.05 if few else 1.0
    image, labels = draw_synthetic(SYNTHETIC_KINDS[_TURNS[index % len(_TURNS)]], rng, density)
    name = f"{seed}/{_SPLITS[split]}/{index}"
    image_id = sha256_bytes(name.encode())
    _write_png(
        folder / image_id / "images" / f"{image_id}.png", cv2.cvtColor(image, cv2.COLOR_RGB2BGRA)
    )
    if split == 0:
        for label in range(1, int(labels.max()) + 1):
            mask = labels == label
            mask_id = sha256_bytes(f"{name}/{label}".encode())
            _write_png(folder / image_id / "masks" / f"{mask_id}.png", mask * np.uint8(255))


def _write_png(path: Path, pixels: cv2.typing.MatLike) -> None:
    """Write a PNG file; the channels are gray or BGRA, the order of OpenCV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
