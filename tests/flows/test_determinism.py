"""What must not change a bit: how often the work is done, on what, and in what pieces."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.engine.isolation import run_in_worker

SHARDS_OF_TWO = """
from nucleus_cli import training
from nucleus_cli.main import main

start = training.start

def start_with_small_shards():
    start()
    import tasks.predict

    tasks.predict.SHARD = 2

training.start = start_with_small_shards
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_same_bits_on_threads_and_dask_and_in_one_shard_and_two(
    place: Any, servers: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    dask = {"NUCLEUS_TASK_RUNNER": "dask", "PREFECT_API_URL": servers["Prefect"].url}
    program = {"whole": ["-m", "nucleus_cli.main"], "in two": ["-c", SHARDS_OF_TWO]}
    made = set()
    for shards, runner in (("whole", {}), ("in two", {}), ("in two", dask)):
        here = place.elsewhere(tmp_path / f"{shards} {'dask' if runner else 'threads'}")
        command = here.retraining("--test", here.test, "--set", f"training.precision={precision}")
        done = subprocess.run(
            [sys.executable, *program[shards], *map(str, command)],
            env=here.environment | runner,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert ("Task run 'predict images 3-3'" in done.stderr) == (shards == "in two")
        [submission] = here.home.glob("runs/*/submission.csv")
        [network] = here.home.glob("stages/train/*/model.keras")
        weights = run_in_worker(1, "nucleus_unet.network.inference:weights_digest", network, 1)
        made.add((submission.read_bytes(), weights))
    assert len(made) == 1
