"""Helm's own lint and render, in a process of its own: its library is Go, which is no good guest in a test's process.

python helm.py < {"chart": DIR, "values": {…}, "lint": false}
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

RELEASE: Final = "pmwatch"
NAMESPACE: Final = "exports"


class Refused(Exception):
    """Helm does not accept the values."""


def lint(chart: Path, values: dict[str, Any]) -> list[str]:
    """Return what `helm lint --strict` finds, from warnings on."""
    report = _ask(chart, values, lint=True)
    return [*report["errors"], *(one["error"] for one in report["messages"] if one["severity"] > 1)]


def render(chart: Path, values: dict[str, Any]) -> dict[str, str]:
    """Return every template's text by its file name, as an install with these values would have it. Raises Refused."""
    answer = _ask(chart, values, lint=False)
    if "refused" in answer:
        raise Refused(answer["refused"])
    return {name.rpartition("/")[2]: text for name, text in answer.items()}


def _ask(chart: Path, values: dict[str, Any], *, lint: bool) -> dict[str, Any]:
    request = json.dumps({"chart": str(chart), "values": values, "lint": lint})
    command = [_python(), "-I", __file__]
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@cache
def _python() -> str:
    """Return a Python that has helm_python: this one, or that of the tools (as .ci/run installs them)."""
    from support.services import missing

    found = next(filter(_has_helm, _candidates()), None)
    if found is None:
        missing("helm_python", "the Python package helm-python-sdk")
    return found


def _candidates() -> Iterator[str]:
    yield sys.executable
    if tool := shutil.which("kubernetes-validate"):
        yield os.path.join(os.path.dirname(os.path.realpath(tool)), "python")


def _has_helm(python: str) -> bool:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('helm_python') is None)"
    return os.path.exists(python) and subprocess.run([python, "-I", "-c", look], check=False).returncode == 0


def _answer(chart: str, values: dict[str, Any], *, lint: bool) -> dict[str, Any]:
    import helm_python  # type: ignore[import-not-found, unused-ignore]

    if lint:
        found: dict[str, Any] = helm_python.lint(chart, values, strict=True, namespace=NAMESPACE)
        return found
    with helm_python.Chart.load(chart) as loaded:
        try:
            made: dict[str, Any] = loaded.render(values, name=RELEASE, namespace=NAMESPACE)
        except helm_python.HelmError as error:
            return {"refused": str(error)}
    return made


if __name__ == "__main__":
    json.dump(_answer(**json.load(sys.stdin)), sys.stdout)
