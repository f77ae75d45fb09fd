"""What the text of this project is like, in numbers: python tools/style.py [FOLDER] [--files]."""

import argparse
import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

LONG = 110  # columns
MOST_LINES = 40  # of a function
MOST_ARGUMENTS = 8


def flags(source):
    "The directives of a cell: export, hide, …"
    return {
        line[2:].split()[0].rstrip(":")
        for line in source.splitlines()
        if line.startswith("#|") and line[2:].split()
    }


def cells_of(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


def is_public(node):
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")


def describe_notebook(path):
    "Numbers of one notebook: characters of prose and code, exported and shown cells."
    found = {"prose": 0, "code": 0, "exported": 0, "shown": 0, "crowded": 0, "long cells": 0}
    found["cell lines"] = []
    for kind, source in cells_of(path):
        if kind == "markdown":
            found["prose"] += len(source)
            found["shown"] += "$$" in source
            continue
        found["code"] += len(source)
        asked = flags(source)
        if "export" in asked:
            lines = [x for x in source.splitlines() if x.strip() and not x.startswith("#|")]
            found["exported"] += 1
            found["cell lines"].append(len(lines))
            found["crowded"] += sum(map(is_public, ast.parse(source).body)) > 1
            found["long cells"] += len(lines) > MOST_LINES
        elif not asked & {"hide", "default_exp"}:
            found["shown"] += 1
    return found


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def argument_count(node):
    given = node.args
    names = [a.arg for a in [*given.posonlyargs, *given.args, *given.kwonlyargs]]
    return len([n for n in names if n not in ("self", "cls")])


def describe_module(path):
    "Numbers of one module: lines, columns, functions that are long or take much."
    lines = path.read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    found = functions(tree)
    generated = {
        k  # nbdev's list of names, and the title that it copies
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
        for k in range(n.lineno, n.end_lineno + 1)
    } | {1}
    is_command_line = path.stem.startswith("cli")  # a command's parameters are its options
    return {
        "lines": len(lines),
        "columns": [
            len(x)
            for k, x in enumerate(lines, 1)
            if x.strip() and "://" not in x and k not in generated and not x.startswith("# %%")
        ],
        "functions": len(found),
        "long functions": [n.name for n in found if n.end_lineno - n.lineno >= MOST_LINES],
        "many arguments": [
            n.name for n in found if argument_count(n) > MOST_ARGUMENTS and not is_command_line
        ],
    }


def complex_functions(folder):
    "Functions of a cyclomatic complexity over 10, as ruff counts it."
    command = [sys.executable, "-m", "ruff", "check", "--select", "C901", "--output-format", "json"]
    command += ["--isolated", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [(Path(p["filename"]), p["message"].split("`")[1]) for p in json.loads(done.stdout)]


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(modules, notebooks, tangled):
    "The table of STYLE's comparison, as (what, value)."
    columns = [c for m in modules.values() for c in m["columns"]]
    total = {
        k: sum(n[k] for n in notebooks.values()) for k in ("prose", "code", "exported", "shown")
    }
    cell_lines = [c for n in notebooks.values() for c in n["cell lines"]]
    return {
        "modules": len(modules),
        "lines": sum(m["lines"] for m in modules.values()),
        "longest module, lines": max(m["lines"] for m in modules.values()),
        "columns, 95 %": percentile(columns, 0.95),
        "columns, 99 %": percentile(columns, 0.99),
        f"lines over {LONG} columns": sum(c > LONG for c in columns),
        f"functions over {MOST_LINES} lines": sum(
            len(m["long functions"]) for m in modules.values()
        ),
        "functions over complexity 10": len(tangled),
        f"functions over {MOST_ARGUMENTS} parameters": sum(
            len(m["many arguments"]) for m in modules.values()
        ),
        "lines an exported cell, median": statistics.median(cell_lines),
        "lines an exported cell, 90 %": percentile(cell_lines, 0.9),
        f"exported cells over {MOST_LINES} lines": sum(n["long cells"] for n in notebooks.values()),
        "exported cells of several public definitions": sum(
            n["crowded"] for n in notebooks.values()
        ),
        "prose : code, characters": round(total["prose"] / total["code"], 2),
        "shown : exported cells": round(total["shown"] / total["exported"], 2),
    }


def print_files(modules, notebooks, tangled):
    for path, m in modules.items():
        knots = [name for file, name in tangled if file.resolve() == path.resolve()]
        wide = sum(c > LONG for c in m["columns"])
        print(
            f"{path}: {m['lines']} lines, {wide} wide; long {m['long functions']}; "
            f"complex {knots}; many arguments {m['many arguments']}"
        )
    for path, n in notebooks.items():
        print(
            f"{path}: prose : code {n['prose'] / max(1, n['code']):.2f}, shown : exported "
            f"{n['shown']}:{n['exported']}, over {MOST_LINES} lines {n['long cells']}, "
            f"several definitions {n['crowded']}"
        )


def modules_and_notebooks(folder):
    "Numbers of every module and every notebook of a checkout."
    paths = sorted((folder / "wavescat").rglob("*.py"))
    modules = {p: describe_module(p) for p in paths if not p.name.startswith("_")}
    notebooks = sorted((folder / "nbs" / "lib").rglob("*.ipynb"))
    return modules, {p: describe_notebook(p) for p in notebooks}


def measure(folder):
    "The numbers of a checkout, as what → value."
    return summary(*modules_and_notebooks(folder), complex_functions(folder / "wavescat"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=".", type=Path)
    parser.add_argument("--files", action="store_true", help="every file, not only the sums")
    asked = parser.parse_args()
    modules, notebooks = modules_and_notebooks(asked.folder)
    tangled = complex_functions(asked.folder / "wavescat")
    if asked.files:
        print_files(modules, notebooks, tangled)
    for what, value in summary(modules, notebooks, tangled).items():
        print(f"{value:>8}  {what}")


if __name__ == "__main__":
    main()
