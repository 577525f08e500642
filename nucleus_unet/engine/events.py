"""The events of a long computation, as lines of a file that another process can follow."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
"""Name of the file that holds the events of a training."""


def epochs(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the ``epoch`` events in order; of an epoch that was trained twice, only the last."""
    found = {event["epoch"]: event for event in events if event["event"] == "epoch"}
    return [found[number] for number in sorted(found)]


class EventLog:
    """A file of JSON lines, each ``{"event": name, ...}``.

    One process writes with `tell`. Any number of others read, each through its own `EventLog`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def repair(self) -> None:
        """Remove the incomplete last line of a writer that was killed; call this before writing."""
        if self._path.exists():
            os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)

    def tell(self, event: str, **facts: Any) -> None:
        """Append an event."""
        with self._path.open("a") as file:
            file.write(json.dumps({"event": event} | facts) + "\n")

    def new(self) -> list[dict[str, Any]]:
        """Return the events since the last call; a line that is still incomplete is left for later."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        self._offset += len(complete) + bool(complete)
        return [json.loads(line) for line in complete.splitlines()]
