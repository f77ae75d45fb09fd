"""Execute notebooks and store what their cells show: `python tools/outputs.py [WORDS]`.

Notebooks of nbs/lib whose path has one of the words, or all. A notebook that fails stays as it was."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys
from pathlib import Path
from nbdev.test import test_nb
sys.exit(not test_nb(Path(sys.argv[1]), save=True)[0])
"""


def execute(path: Path) -> bool:  # whether it did
    "Execute a notebook in a process of its own, and store its outputs."
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", CODE, path], env=environment, cwd=ROOT)
    return done.returncode == 0


def main(words: list[str]) -> int:  # exit status
    paths = sorted((ROOT / "nbs" / "lib").rglob("*.ipynb"))
    chosen = [p for p in paths if not words or any(word in str(p) for word in words)]
    failed = [p.stem for p in chosen if not execute(p)]
    subprocess.run([Path(sys.executable).parent / "nbdev-clean"], cwd=ROOT, check=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
