"""Fuzz the parsers of files from other programs, guided by coverage.

    make install EXTRAS=soak
    python -m soak.fuzz                  # ten minutes for each parser
    python -m soak.fuzz GeoJSON ROI --seconds 60

Each parser gets valid files, changed at random; changes that reach new code are kept and changed again.
A parser may read a file or raise a `NucleusError`. Any other error ends the turn of the parser, and the
file is saved in FOLDER/faults. FOLDER also keeps the files and the time spent, so an interrupted fuzzing
continues.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SECONDS = 600
MOST_MB, LONGEST_S, MOST_BYTES = 3000, 20, 1 << 16
INSTRUMENTED = ["nucleus_unet", "soak", "json", "csv", "tomllib", "zipfile", "tifffile", "roifile"]


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one parser in this process, which ends with the exit status of libFuzzer."""
    import atheris

    logging.disable()
    with atheris.instrument_imports(include=INSTRUMENTED):
        from soak.parsers import PARSERS, accepts
    read = PARSERS[name].read
    atheris.Setup([sys.argv[0], *arguments], lambda content: accepts(read, content) and None)
    atheris.Fuzz()


def turn(name: str, files: Sequence[bytes], seconds: float, folder: Path) -> bool:
    """Fuzz one parser until its time is used up. Returns False if a fault was found."""
    corpus, spent = folder / name, folder / f"{name}.json"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(files):
        (corpus / f"valid-{number}").write_bytes(content)
    (folder / "faults").mkdir(exist_ok=True)
    before = json.loads(spent.read_text()) if spent.exists() else 0
    quiet = os.environ | {"OPENCV_LOG_LEVEL": "SILENT"}
    while (left := seconds - before) > 0:
        now = min(left, 60)  # what is spent is written down after each minute
        command = [sys.executable, "-m", "soak.fuzz", "--only", name, str(corpus)]
        command += [
            f"-max_total_time={now:.0f}",
            f"-timeout={LONGEST_S}",
            f"-rss_limit_mb={MOST_MB}",
        ]
        command += [f"-max_len={MOST_BYTES}", f"-artifact_prefix={folder / 'faults' / name}-"]
        if subprocess.run(command, cwd=Path(__file__).parents[1], env=quiet).returncode:
            return False
        before += now
        spent.write_text(json.dumps(before))
    return True


def main() -> None:
    if sys.argv[1:2] == ["--only"]:
        fuzz(sys.argv[2], sys.argv[3:])
    from soak.parsers import PARSERS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parsers", nargs="*", choices=[*PARSERS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each parser")
    parser.add_argument("--folder", type=Path, default=Path(".soak/fuzz"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    faulty = [
        name
        for name in arguments.parsers or PARSERS
        if not turn(name, PARSERS[name].files(), arguments.seconds, folder)
    ]
    print("faults:", ", ".join(faulty) or "none")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
