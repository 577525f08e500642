import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from click.testing import CliRunner

from nucleus_cli.main import main


def square(left: int, top: int) -> dict[str, object]:
    ring = [[left, top], [left + 2, top], [left + 2, top + 2], [left, top + 2]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {}}


def test_import(tmp_path: Path, bare: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for number, name in enumerate(("p/a", "b", "c")):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / f"{name}.png"), np.full((9, 9), number, np.uint8))
    (images / "p" / "a.geojson").write_text(json.dumps([square(1, 1), square(5, 5)]))
    (images / "b.geojson").write_text(json.dumps([square(1, 1), square(99, 5)]))
    done = CliRunner().invoke(main, ["import", str(images), str(images), "--to", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "problem               files",
        "empty                     1",
        "",
        "b.geojson, feature 2  empty               contains no centre of a pixel of the image: skipped",
        "",
        "images             2",
        "nuclei             3",
        "problems           1",
        "not annotated      1, left out: c",
        "renamed            1, without folders: p-a",
        f"to check it, type  nucleus check {out}",
    ]
    checked = CliRunner().invoke(main, ["check", str(out)])
    assert checked.exit_code == 0
    assert "nuclei             3" in checked.stdout
    assert "usable" in checked.stdout


def test_an_import_that_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("import", tmp_path / "nothing", tmp_path / "images", "--to", tmp_path / "out")
    assert f"{tmp_path}/images: no such file or folder." in line
    assert list(tmp_path.iterdir()) == []


def test_a_plane_of_a_stack(refused: Callable[..., str], tmp_path: Path) -> None:
    import tifffile

    stack = np.zeros((2, 9, 9), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "CYX"})
    (tmp_path / "a.geojson").write_text(json.dumps([square(1, 1)]))
    command = ["import", *(str(tmp_path / name) for name in ("a.geojson", "a.tif"))]
    assert "--channel" in refused(*command, "--to", tmp_path / "out")
    done = CliRunner().invoke(main, [*command, "--to", str(tmp_path / "out"), "--channel", "2"])
    assert done.exit_code == 0, done.output
