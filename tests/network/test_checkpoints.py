from pathlib import Path

import numpy as np
import pytest

from nucleus_unet.network import checkpoints


def save(folder: Path, *steps: int) -> list[Path]:
    for step in steps:
        checkpoints.save_checkpoint(
            folder, step, {"weights": np.full(100, step), "name": np.asarray("a")}
        )
    return sorted(folder.iterdir())


def test_a_saved_checkpoint_loads_unchanged(tmp_path: Path) -> None:
    [path] = save(tmp_path, 7)
    assert path.name.startswith("checkpoint-000000007-")
    found = checkpoints.load_checkpoint(tmp_path)
    assert (found.step, found.damaged, sorted(found.arrays)) == (7, (), ["name", "weights"])
    np.testing.assert_array_equal(found.arrays["weights"], np.full(100, 7))
    assert str(found.arrays["name"]) == "a"


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    names = [path.name[:20] for path in save(tmp_path, 8, 9, 10, 100)]
    assert names == ["checkpoint-000000010", "checkpoint-000000100"]
    assert checkpoints.load_checkpoint(tmp_path).step == 100


def test_without_a_checkpoint_training_starts_at_step_0(tmp_path: Path) -> None:
    found = checkpoints.load_checkpoint(tmp_path)
    assert (found.step, dict(found.arrays), found.damaged) == (0, {}, ())


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_checkpoint_is_skipped_and_listed(tmp_path: Path, damage: str) -> None:
    _, last = save(tmp_path, 1, 2)
    content = bytearray(last.read_bytes())
    content[300] ^= 1
    last.write_bytes({"cut": bytes(content[:-1]), "empty": b"", "flipped": bytes(content)}[damage])
    found = checkpoints.load_checkpoint(tmp_path)
    assert (found.step, found.damaged) == (1, (last.name,))
    assert checkpoints.load_checkpoint(tmp_path).damaged == ()  # it was renamed
    assert checkpoints.load_checkpoint(tmp_path).step == 1


def test_saving_deletes_damaged_and_incomplete_files(tmp_path: Path) -> None:
    _, last = save(tmp_path, 1, 2)
    last.write_bytes(b"")
    assert checkpoints.load_checkpoint(tmp_path).step == 1
    (tmp_path / f".{last.name}.x1y2").write_bytes(b"of a writer that was killed")
    names = [path.name[:20] for path in save(tmp_path, 3)]
    assert names == ["checkpoint-000000001", "checkpoint-000000003"]


def test_if_all_checkpoints_are_damaged_training_starts_at_step_0(tmp_path: Path) -> None:
    paths = save(tmp_path, 1, 2)
    for path in paths:
        path.write_bytes(b"")
    found = checkpoints.load_checkpoint(tmp_path)
    assert (found.step, found.damaged) == (0, tuple(path.name for path in paths[::-1]))


def test_objects_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        checkpoints.save_checkpoint(tmp_path, 1, {"weights": np.array([{}], dtype=object)})
