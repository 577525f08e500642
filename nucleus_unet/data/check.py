"""Check a raw data set: count its images and nuclei, and report problems."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data.images import decode_image, decode_labels, decode_mask, pixel_digest
from nucleus_unet.data.masks import (
    DECIDED_BY_RULE,
    IGNORED,
    REFUSED,
    DataProblem,
    has_hole,
    merge_into_labels,
    number_label_image,
    pieces,
    size_text,
    with_ignored,
)
from nucleus_unet.data.prepared import Progress, in_threads
from nucleus_unet.data.raw import RawDataset, RawSample, open_raw
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import first_names
from nucleus_unet.recipe import ONLY_PLANE, Plane

_KIND_WIDTH = 20


@dataclass(frozen=True)
class DatasetReport:
    """The result of `check_dataset`."""

    path: Path
    layout: str
    """What its layout is called."""
    images: int
    """Number of images."""
    annotated: int
    """Number of images with a masks folder or a label image."""
    sizes: dict[tuple[int, int], int]
    """Number of images by (height, width) in pixels, the most frequent size first."""
    modes: dict[str, int]
    """Number of images by mode, such as ``RGBA`` or ``gray uint16``, the most frequent first."""
    pixel_sizes_um: dict[float | None, int]
    """Number of images by the side of a pixel, as in `DecodedImage`, the most frequent first."""
    areas_px: NDArray[np.int64]
    """Area of every nucleus in pixels."""
    in_pieces: int
    """Number of nuclei that have several pieces."""
    with_holes: int
    """Number of nuclei that enclose other pixels."""
    ignored_px: int
    """Number of pixels that nobody annotated."""
    unread: tuple[str, ...]
    """Files that belong to no image and were ignored."""
    problems: tuple[DataProblem, ...]
    """Sorted by file. Images are named by their path in the data set, other files by the id of the image
    and their name."""

    @property
    def faults(self) -> tuple[DataProblem, ...]:
        """The problems that no rule decides, so that the data set cannot be used as it is."""
        by_rule = (*DECIDED_BY_RULE, "duplicate")
        return tuple(problem for problem in self.problems if problem.kind not in by_rule)


@dataclass(frozen=True)
class _Sample:
    """The part of the report about one sample."""

    id: str
    pixels_sha256: str | None
    size: tuple[int, int] | None
    mode: str | None
    pixel_size_um: float | None
    areas_px: NDArray[np.int64]
    in_pieces: int
    with_holes: int
    ignored_px: int
    problems: tuple[DataProblem, ...]


def check_dataset(
    path: Path,
    progress: Progress | None = None,
    against: Path | None = None,
    plane: Plane = ONLY_PLANE,
    ignore_value: int | None = None,
) -> DatasetReport:
    """Read every file of a raw data set, and report the problems of each instead of raising.

    Parameters
    ----------
    path : Path
        A data set that `open_raw` can open.
    progress : callable, optional
        Called as ``progress(done, total)`` after each image.
    against : Path, optional
        Another data set, for example the test images. Images that both hold are problems.
    plane : Plane
        Which plane of stacks is the image.
    ignore_value : int, optional
        Value in label images of the pixels that nobody annotated.

    Returns
    -------
    DatasetReport

    Raises
    ------
    NucleusError
        If the layout of the data set is wrong, as for `open_raw`.
    """
    with open_raw(path) as raw:
        annotated = sum(sample.annotated for sample in raw.samples)
        look = partial(_look, raw, plane, ignore_value)
        samples = list(in_threads(look, raw.samples, progress))
        problems = [problem for sample in samples for problem in sample.problems]
        if annotated:
            problems += [
                DataProblem(sample.id, "not annotated", "no masks folder and no label image")
                for sample in raw.samples
                if not sample.annotated
            ]
    problems += _duplicates(samples)
    if against:
        problems += _leaks(samples, against, plane)
    sizes = Counter(sample.size for sample in samples if sample.size)
    modes = Counter(sample.mode for sample in samples if sample.mode)
    pixel_sizes = Counter(sample.pixel_size_um for sample in samples if sample.size)
    return DatasetReport(
        path,
        raw.layout,
        images=len(samples),
        annotated=annotated,
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        pixel_sizes_um=dict(pixel_sizes.most_common()),
        areas_px=np.concatenate([sample.areas_px for sample in samples]),
        in_pieces=sum(sample.in_pieces for sample in samples),
        with_holes=sum(sample.with_holes for sample in samples),
        ignored_px=sum(sample.ignored_px for sample in samples),
        unread=raw.unread,
        problems=tuple(sorted(problems, key=lambda problem: (problem.file, problem.kind))),
    )


def format_report(report: DatasetReport, usual_px: tuple[float, float]) -> str:
    """The report as aligned plain text, with the problems and a verdict at the end.

    Parameters
    ----------
    report : DatasetReport
    usual_px : (float, float)
        Smallest and largest diameter of most nuclei that the built-in model was trained on.
    """
    areas = report.areas_px
    lines = [str(report.path), f"{'layout':<12}{report.layout}"]
    lines.append(f"{'images':<12}{report.images:>8}")
    lines.append(f"{'annotated':<12}{report.annotated:>8}")
    lines.append(f"{'nuclei':<12}{areas.size:>8}")
    if areas.size:
        low, middle, high = areas.min(), np.median(areas), areas.max()
        lines.append(f"{'area':<12}{low:>8} px smallest, {middle:g} px median, {high} px largest")
        diameter = 2 * np.sqrt(middle / np.pi)
        lines.append(
            f"{'diameter':<12}{diameter:>8.1f} px median; the built-in model was trained on "
            f"{usual_px[0]:g} to {usual_px[1]:g} px"
        )
        lines.append(f"{'in pieces':<12}{report.in_pieces:>8}")
        lines.append(f"{'with holes':<12}{report.with_holes:>8}")
    if report.ignored_px:
        lines.append(f"{'ignored':<12}{report.ignored_px:>8} px that nobody annotated")
    if report.pixel_sizes_um:
        lines.append(f"{'pixel size':<12}{_pixel_sizes(report)}")
    if report.unread:
        lines.append(f"{'ignored':<12}{len(report.unread):>8} {first_names(report.unread)}")
    lines += ["", f"{'height':>7} {'width':>7} {'images':>7}"]
    lines += [f"{height:>7} {width:>7} {n:>7}" for (height, width), n in report.sizes.items()]
    width = max(map(len, report.modes), default=0)
    lines += ["", *(f"{mode:<{width}} {n:>7}" for mode, n in report.modes.items()), ""]
    if report.problems:
        lines += [*format_problems(report.problems), ""]
    return "\n".join([*lines, _verdict(report)])


def format_problems(problems: Sequence[DataProblem]) -> list[str]:
    """Lines that count problems by kind, the most frequent first, and then list each of them."""
    kinds = Counter(problem.kind for problem in problems)
    file_width = max((len(problem.file) for problem in problems), default=0)
    return [
        f"{'problem':<{_KIND_WIDTH}}{'files':>7}",
        *(f"{kind:<{_KIND_WIDTH}}{n:>7}" for kind, n in kinds.most_common()),
        "",
        *(f"{p.file:<{file_width}}  {p.kind:<{_KIND_WIDTH}}{p.detail}" for p in problems),
    ]


def _pixel_sizes(report: DatasetReport) -> str:
    """How many images have which pixel size."""
    sizes = [
        f"{'unknown' if size is None else f'{size:.4g} µm'} in {n}"
        for size, n in report.pixel_sizes_um.items()
    ]
    return f"{', '.join(sizes)} images"


def _verdict(report: DatasetReport) -> str:
    if faults := Counter(problem.kind for problem in report.faults):
        return "not usable: " + ", ".join(f"{n} {kind}" for kind, n in faults.most_common())
    for_what = "" if report.annotated else " to predict, but not to train, as no image is annotated"
    if report.problems:
        return f"usable{for_what}: {len(report.problems)} small problems are decided by rule"
    return f"usable{for_what}"


def _look(raw: RawDataset, plane: Plane, ignore_value: int | None, sample: RawSample) -> _Sample:
    problems: list[DataProblem] = []
    pixels_sha256 = size = mode = pixel_size_um = None
    labels = np.zeros((1, 1), np.int32)
    with _noting(problems, sample.image):
        decoded = decode_image(raw.read(sample.image), sample.image, plane)
        size, mode = decoded.image.shape[:2], decoded.mode
        pixel_size_um = decoded.pixel_size_um
        pixels_sha256 = pixel_digest(decoded.image)
    annotation = _readable(raw, sample, problems)
    if size is not None:
        labels = _labels(annotation, sample, size, problems, ignore_value)
        labels = _with_ignore_file(raw, sample, labels, problems)
    else:
        deque(annotation, maxlen=0)
    ignored, labels = labels == IGNORED, np.maximum(labels, 0)
    in_sample = tuple(
        p if p.file == sample.image else replace(p, file=f"{sample.id}/{p.file}") for p in problems
    )
    return _Sample(
        sample.id,
        pixels_sha256,
        size,
        mode,
        pixel_size_um,
        areas_px=np.bincount(labels.ravel(), minlength=1)[1:],
        in_pieces=int((pieces(labels)[0] > 1).sum()),
        with_holes=int(has_hole(labels).sum()),
        ignored_px=int(ignored.sum()),
        problems=in_sample,
    )


def _labels(
    annotation: Iterator[tuple[str, NDArray[Any]]],
    sample: RawSample,
    size: tuple[int, int],
    problems: list[DataProblem],
    ignore_value: int | None,
) -> NDArray[np.int32]:
    """The labels of the files that can be read; problems are added to `problems`."""
    if sample.label_image is None:
        merged = merge_into_labels(annotation, size)
        problems += merged.problems
        return merged.labels
    for file, labels in annotation:
        if labels.shape == size:
            numbered = number_label_image(file, labels, ignore_value)
            problems += numbered.problems
            if not any(problem.kind in REFUSED for problem in numbered.problems):
                return numbered.labels
        else:
            problems.append(_wrong_size(file, labels.shape, size))
    return np.zeros(size, np.int32)


def _with_ignore_file(
    raw: RawDataset, sample: RawSample, labels: NDArray[np.int32], problems: list[DataProblem]
) -> NDArray[np.int32]:
    if not sample.ignore:
        return labels
    file = Path(sample.ignore).name
    with _noting(problems, file):
        mask = decode_mask(raw.read(sample.ignore), file)
        if mask.shape == labels.shape:
            return with_ignored(labels, mask != 0)
        problems.append(_wrong_size(file, mask.shape, labels.shape))
    return labels


def _wrong_size(file: str, shape: tuple[int, ...], size: tuple[int, ...]) -> DataProblem:
    detail = f"{size_text(shape)}, but the image is {size_text(size)}"
    return DataProblem(file, "unreadable", detail)


def _readable(
    raw: RawDataset, sample: RawSample, problems: list[DataProblem]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The decoded annotation files; those that cannot be read are added to `problems`."""
    decode = decode_mask if sample.label_image is None else decode_labels
    for file, name in sample.annotation:
        with _noting(problems, file):
            yield file, decode(raw.read(name), file)


@contextmanager
def _noting(problems: list[DataProblem], file: str) -> Iterator[None]:
    """Turn an error about a file into a problem."""
    try:
        yield
    except NucleusError as error:
        problems.append(DataProblem(file, "unreadable", str(error).removeprefix(f"{file}: ")))


def _duplicates(samples: list[_Sample]) -> Iterator[DataProblem]:
    """A problem for each image with the same pixels as an earlier one."""
    first: dict[str, str] = {}
    for sample in samples:
        if sample.pixels_sha256 is None:
            continue
        earlier = first.setdefault(sample.pixels_sha256, sample.id)
        if earlier != sample.id:
            detail = f"has the same pixels as {earlier}, perhaps flipped or turned"
            yield DataProblem(sample.id, "duplicate", detail)


def _leaks(samples: list[_Sample], against: Path, plane: Plane) -> Iterator[DataProblem]:
    """A problem for each image that another data set holds too."""
    with open_raw(against) as raw:
        others = {}
        for sample in raw.samples:
            name = f"{against}/{sample.image}"
            image = decode_image(raw.read(sample.image), name, plane).image
            others[pixel_digest(image)] = sample.id
    for mine in samples:
        if mine.pixels_sha256 in others:
            detail = f"is in {against} too, as {others[mine.pixels_sha256]}"
            yield DataProblem(mine.id, "leak", detail)
