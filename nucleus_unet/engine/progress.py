"""Long work shows itself: a bar in a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

LINE_EVERY_S = 30.0


def reporter(what: str, unit: str, say: Callable[[str], None]) -> Callable[[int, int | None], None]:
    """A callable for (done, total), to be called often.

    Parameters
    ----------
    what : str
        What is done, as "decoding".
    unit : str
        Of the numbers; "B" for bytes, which are shown with their prefixes.
    say : callable
        Takes a line now and then, where stderr is not a terminal.
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
