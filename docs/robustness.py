"""Write the page of faults from the tests that provoke them: `make robustness`.

A test says with ``@pytest.mark.fault(group, case, sees)`` which fault it provokes, and what the user
sees. ``simulated=True`` marks a fault that cannot be caused on every machine: the test raises the error
itself, as close to the operating system as possible.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
HEAD = """# What can go wrong

Each row is a fault that a test provokes, and what the user sees. `make test` runs the tests, and `make
test-all` also those that are marked slow. "Simulated" faults cannot be caused on every machine: the
test raises the error itself. [Real-life files](files.md) have a page of their own, and `make soak`
fuzzes the parsers.

`make robustness` writes this page from the tests.
"""


def marks(tests: Path) -> Iterator[tuple[str, str, str, str]]:
    """Group, case, what the user sees, and the test, in the order of the files."""
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        all_slow = "pytestmark = pytest.mark.slow" in ast.unparse(tree)
        for test in tree.body:
            if not isinstance(test, ast.FunctionDef):
                continue
            decorators = [ast.unparse(one) for one in test.decorator_list]
            slow = " (slow)" if all_slow or "pytest.mark.slow" in decorators else ""
            for mark in test.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    group, case, sees = map(ast.literal_eval, mark.args)
                    case += " (simulated)" if mark.keywords else ""
                    place = (
                        f"`{path.relative_to(tests.parent)}`, {test.name.replace('_', ' ')}{slow}"
                    )
                    yield group, case, sees, place.replace(", test ", ", ")


def page() -> str:
    """The page, as Markdown."""
    groups = defaultdict(list)
    for group, *cells in marks(ROOT / "tests"):
        groups[group].append(f"| {' | '.join(cells)} |")
    head = ["| fault | what the user sees | test |", "|---|---|---|"]
    parts = [
        "\n".join([f"## {group}", "", *head, *sorted(groups[group])]) for group in sorted(groups)
    ]
    return "\n\n".join([HEAD.strip(), *parts]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
