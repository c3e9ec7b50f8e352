"""The benchmarks' own page names every program that there is, and no other."""

import re
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_page_tells_how_to_run_each_program() -> None:
    programs = {path.stem for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    named = set(re.findall(r"python -m benchmarks\.(\w+)", (BENCHMARKS / "README.md").read_text()))
    assert named == programs
