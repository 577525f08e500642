from pathlib import Path

from nucleus_unet.events import EventLog


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


def test_a_line_that_is_being_written_is_left_for_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventLog(path)
    path.write_text('{"event": "start"}\n{"event": "ep')
    assert reader.new() == [{"event": "start"}]
    assert reader.new() == []
    with path.open("a") as file:
        file.write('och"}\n')
    assert reader.new() == [{"event": "epoch"}]


def test_no_file_no_events(tmp_path: Path) -> None:
    assert EventLog(tmp_path / "events.jsonl").new() == []
