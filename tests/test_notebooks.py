"""Every notebook of the source, executed from top to bottom in a process of its own; each is one case."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(
    p
    for folder in ("lib", "demos")
    for p in (ROOT / "nbs" / folder).rglob("*.ipynb")
    if ".ipynb_checkpoints" not in p.parts
)
CODE = """
import sys
from pathlib import Path
from nbdev.test import test_nb
sys.exit(not test_nb(Path(sys.argv[1]), verbose=False)[0])
"""


def _execute(path):
    return subprocess.run(
        [sys.executable, "-c", CODE, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "MPLBACKEND": "agg"},
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    done = _execute(path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_broken_notebook_fails(tmp_path):
    import nbformat

    path = tmp_path / "broken.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("assert 1 == 2")],
            metadata={
                "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
            },
        ),
        path,
    )
    assert _execute(path).returncode != 0
