from pathlib import Path
from typing import Any

from nucleus_unet.engine.events import EventLog, epochs


def test_each_event_is_read_once(tmp_path: Path) -> None:
    log, reader = EventLog(tmp_path / "events.jsonl"), EventLog(tmp_path / "events.jsonl")
    log.tell("start", parameters=3)
    log.tell("epoch", loss=0.5, name="ä\nb")
    assert reader.new() == [
        {"event": "start", "parameters": 3},
        {"event": "epoch", "loss": 0.5, "name": "ä\nb"},
    ]
    assert reader.new() == []
    log.tell("end")
    assert reader.new() == [{"event": "end"}]
    assert len(EventLog(tmp_path / "events.jsonl").new()) == 3


def test_an_incomplete_line_is_read_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventLog(path)
    path.write_text('{"event": "start"}\n{"event": "ep')
    assert reader.new() == [{"event": "start"}]
    assert reader.new() == []
    with path.open("a") as file:
        file.write('och"}\n')
    assert reader.new() == [{"event": "epoch"}]


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert EventLog(tmp_path / "events.jsonl").new() == []


def test_the_incomplete_line_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start"}\n{"event": "ep')
    reader, log = EventLog(path), EventLog(path)
    assert reader.new() == [{"event": "start"}]
    log.repair()
    log.tell("epoch")
    assert reader.new() == [{"event": "epoch"}]
    log.repair()  # removes nothing from a complete line
    assert [event["event"] for event in EventLog(path).new()] == ["start", "epoch"]
    EventLog(tmp_path / "absent").repair()
    assert not (tmp_path / "absent").exists()


def test_an_epoch_that_was_trained_twice_counts_once() -> None:
    events: list[dict[str, Any]] = [
        {"event": "start"},
        {"event": "epoch", "epoch": 1, "seconds": 3},
        {"event": "epoch", "epoch": 2, "seconds": 4},
        {"event": "damaged"},
        {"event": "epoch", "epoch": 2, "seconds": 5},
        {"event": "epoch", "epoch": 3, "seconds": 6},
    ]
    assert epochs(events) == [events[1], events[4], events[5]]
