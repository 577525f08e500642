"""What happens in a long computation, as lines in a file that another process follows."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
"""What the file of a training is called."""


def epochs(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The ``epoch`` events in order, each epoch once: as last told, where it was trained again."""
    found = {event["epoch"]: event for event in events if event["event"] == "epoch"}
    return [found[number] for number in sorted(found)]


class EventLog:
    """A file of JSON lines, each ``{"event": name, ...}``; one writes, others read each line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def mend(self) -> None:
        """Take away half a line, which a writer that was killed left; for the one that writes next."""
        if self._path.exists():
            os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)

    def tell(self, event: str, **facts: Any) -> None:
        """Append an event."""
        with self._path.open("a") as file:
            file.write(json.dumps({"event": event} | facts) + "\n")

    def new(self) -> list[dict[str, Any]]:
        """The events since the last call; a line that is still being written is left for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines()]
