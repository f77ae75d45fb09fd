"""Execute notebooks and store what their cells show: `python tools/outputs.py [--all] [WORD ...]`.

Notebooks of nbs/lib whose path has one of the words, or every one. What a cell shows already is
kept, so that a time that was measured doesn't change with every execution; with --all it is
replaced. A notebook that fails stays as it was."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys
from pathlib import Path
from nbdev.test import test_nb
sys.exit(not test_nb(Path(sys.argv[1]), save=True)[0])
"""


def read_outputs(path: Path) -> dict[str, list]:  # identity of a cell → what it shows
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: cell["outputs"] for cell in cells if cell.get("outputs")}


def put_back(path: Path, outputs: dict[str, list]) -> None:
    "Let cells show what they showed before."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["id"] in outputs:
            cell["outputs"] = outputs[cell["id"]]
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def execute(path: Path, replace: bool) -> bool:  # whether it did
    "Execute a notebook in a process of its own, and store its outputs."
    before = read_outputs(path)
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", CODE, path], env=environment, cwd=ROOT)
    if done.returncode == 0 and not replace:
        put_back(path, before)
    return done.returncode == 0


def main(words: list[str]) -> int:  # exit status
    replace = "--all" in words
    words = [word for word in words if word != "--all"]
    paths = sorted((ROOT / "nbs" / "lib").rglob("*.ipynb"))
    chosen = [p for p in paths if not words or any(word in str(p) for word in words)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda path: execute(path, replace), chosen))
    subprocess.run([Path(sys.executable).parent / "nbdev-clean"], cwd=ROOT, check=True)
    failed = [path.stem for path, is_done in zip(chosen, done) if not is_done]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
