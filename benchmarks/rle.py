"""Compare the speed of RLE encoding and decoding with a plain implementation.

The plain encoder is that of the original notebook: one pass over the complete image for each
nucleus, and a Python loop over its pixels. The notebook has no decoder. The plain decoder comes from
the same public kernels as the encoder: one mask of the complete image for each nucleus. The program
checks that the results are equal.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nucleus_unet.data import decode_rle, encode_rle

CASES = ((520, 696, 100), (1040, 1388, 300))


def discs(height: int, width: int, count: int, seed: int) -> NDArray[np.int32]:
    """Labels of discs with a radius of 8 to 20 pixels; later discs cover earlier ones."""
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    for number in range(1, count + 1):
        centre = (int(random.integers(width)), int(random.integers(height)))
        cv2.circle(labels, centre, int(random.integers(8, 21)), number, cv2.FILLED)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def plain_encode(labels: NDArray[np.int32]) -> list[str]:
    rles = []
    for number in range(1, labels.max() + 1):
        run_lengths: list[int] = []
        previous = -2
        for pixel in np.where((labels == number).T.flatten() == 1)[0]:
            if pixel > previous + 1:
                run_lengths.extend((pixel + 1, 0))
            run_lengths[-1] += 1
            previous = pixel
        rles.append(" ".join(str(value) for value in run_lengths))
    return rles


def plain_decode(rles: Sequence[str], height: int, width: int) -> NDArray[np.int32]:
    labels = np.zeros((height, width), np.int32)
    for number, rle in enumerate(rles, 1):
        values = [int(value) for value in rle.split()]
        mask = np.zeros(height * width, np.int32)
        for start, length in zip(values[::2], values[1::2], strict=True):
            mask[start - 1 : start - 1 + length] = number
        labels = np.maximum(labels, mask.reshape(width, height).T)
    return labels


def fastest(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """Return the result and the shortest time in seconds."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        result = function()
        times.append(perf_counter() - start)
    return result, min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=5, help="repetitions; the fastest counts; default 5"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the label images; default 0")
    arguments = parser.parse_args()
    print(f"{'step':8}{'image':>12}{'nuclei':>8}{'plain ms':>11}{'ours ms':>10}{'ratio':>8}")
    for height, width, count in CASES:
        labels = discs(height, width, count, arguments.seed)
        rles = encode_rle(labels)
        for step, plain, ours in (
            ("encode", partial(plain_encode, labels), partial(encode_rle, labels)),
            (
                "decode",
                partial(plain_decode, rles, *labels.shape),
                partial(decode_rle, rles, *labels.shape),
            ),
        ):
            expected, plain_s = fastest(plain, arguments.repeats)
            result, ours_s = fastest(ours, arguments.repeats)
            if not np.array_equal(expected, result):
                raise SystemExit(f"{step} {height}x{width}: the results differ")
            print(
                f"{step:8}{f'{height}x{width}':>12}{len(rles):>8}{1e3 * plain_s:>11.1f}"
                f"{1e3 * ours_s:>10.2f}{plain_s / ours_s:>8.0f}"
            )


if __name__ == "__main__":
    main()
