"""What was made already is found by its stage alone, and never answered from Prefect's cache."""

import importlib
import pkgutil

from prefect import Task
from prefect.cache_policies import NO_CACHE

import tasks


def test_no_task_is_cached_by_prefect() -> None:
    modules = [
        importlib.import_module(f"tasks.{one.name}") for one in pkgutil.iter_modules(tasks.__path__)
    ]
    found = {
        x.name: x.cache_policy for m in modules for x in vars(m).values() if isinstance(x, Task)
    }
    assert {"ingest", "train", "evaluate", "rank", "publish_model"} <= found.keys()
    assert {name for name, policy in found.items() if policy is not NO_CACHE} == set()
