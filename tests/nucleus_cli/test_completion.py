import os
import subprocess
import sys
from pathlib import Path

import pytest

from nucleus_unet.recipe import key_descriptions, recipe_names

SLOW = {"tensorflow", "keras", "mlflow", "prefect", "cv2", "sklearn", "skimage", "pandas"}
COMPLETE = """
import sys
from nucleus_cli.main import main
try:
    main(prog_name="nucleus")
finally:
    print("loaded", *sys.modules)
"""


def offered(words: str, folder: Path) -> list[str]:
    """What bash is offered for the last of the words; nothing slow is imported for it."""
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        env=os.environ | variables | {"_NUCLEUS_COMPLETE": "bash_complete"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    printed, _, loaded = done.stdout.rpartition("loaded ")
    assert SLOW & set(loaded.split()) == set()
    return printed.split()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("nucleus do", ["plain,doctor"]),
        ("nucleus retrain --recipe ", [f"plain,{n}" for n in recipe_names()]),
        ("nucleus deploy --recipe qu", ["plain,quick"]),
        ("nucleus sweep --recipe mine", ["file,mine"]),
        ("nucleus recipe show p", ["plain,paper"]),
        ("nucleus recipe diff seed b", ["plain,best"]),
        ("nucleus predict images --model ", ["plain,champion", "plain,builtin"]),
        ("nucleus retrain --set training.ep", ["plain,training.epochs="]),
        ("nucleus sweep --over data.bal", ["plain,data.balance="]),
        ("nucleus retrain --set training.epochs = 3 --recipe s", ["plain,seed"]),
        ("nucleus check raw", ["file,raw"]),
    ],
)
def test_what_is_offered(words: str, answer: list[str], tmp_path: Path) -> None:
    assert offered(words, tmp_path) == answer
    assert list(tmp_path.iterdir()) == []


def test_every_key_is_offered(tmp_path: Path) -> None:
    keys = [f"plain,{key}=" for key in key_descriptions()]
    assert offered("nucleus predict --set ", tmp_path) == keys


@pytest.mark.parametrize(
    ("answer", "options"), [("plain,training.epochs=", "-o nospace"), ("plain,best", "")]
)
def test_bash_adds_no_space_after_a_key(answer: str, options: str, tmp_path: Path) -> None:
    source = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        env=os.environ | {"_NUCLEUS_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    script = source.stdout.rpartition("loaded ")[0]
    stand_in = tmp_path / "nucleus"
    stand_in.write_text(f"#!/bin/sh\necho {answer}\n")
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", "-ec", f'{script}\ncompopt() {{ echo "$@"; }}\n_nucleus_completion {stand_in}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == options
