"""Progress of long work: a bar in a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

LINE_EVERY_S = 30.0


def reporter(what: str, unit: str, say: Callable[[str], None]) -> Callable[[int, int | None], None]:
    """Create a function that shows progress; call it with ``(done, total)`` as often as you like.

    Parameters
    ----------
    what : str
        Name of the work, for example "decoding".
    unit : str
        What is counted, for example "images". "B" means bytes, shown as kB, MB and so on.
    say : callable
        Receives a line at most every `LINE_EVERY_S` seconds, if stderr is not a terminal.

    Returns
    -------
    callable
        ``show(done, total)``. `total` is None if it is unknown.
    """
    if sys.stderr.isatty():
        bar = tqdm(desc=what, unit=unit, unit_scale=unit == "B")

        def move(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        return move

    last = time.monotonic()

    def line(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            say(f"{what}: {done:,} of {f'{total:,}' if total else 'unknown'} {unit}")

    return line
