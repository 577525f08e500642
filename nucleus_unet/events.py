"""What happens in a long computation, as lines in a file that another process follows."""

import json
from pathlib import Path
from typing import Any


class EventLog:
    """A file of JSON lines, each ``{"event": name, ...}``; one writes, others read each line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

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
