"""Machines as they are: hardened, with odd names of folders, terminals of few letters, read-only folders."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, wavescat

from wavescat.data.folders import cache_dir, data_dir
from wavescat.data.load import load
from wavescat.runs import paths
from wavescat.studies.index import index
from wavescat.studies.render import write_page

FIPS = """
import hashlib
def hardened(real):
    def hash(*args, usedforsecurity=True, **kw):
        if usedforsecurity: raise ValueError("[digital envelope routines] unsupported")
        return real(*args, usedforsecurity=False, **kw)
    return hash
made = hashlib.new
def new(name, *args, usedforsecurity=True, **kw):
    if usedforsecurity and name.lower() in ("md5", "sha1"):
        raise ValueError("[digital envelope routines] unsupported")
    return made(name, *args, usedforsecurity=usedforsecurity, **kw)
hashlib.new, hashlib.md5, hashlib.sha1 = new, hardened(hashlib.md5), hardened(hashlib.sha1)
"""
SMALL = ["--preset", "smoke", "-p", "L=2", "-p", "seeds=0", "-p", "epochs=1", "--workers", "1"]


def _images(folder, names=("a", "b"), n=4):
    from PIL import Image

    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(np.full((8, 8, 3), 40 * k + 9 * i, np.uint8)).save(
                folder / name / f"{i}.png"
            )
    return folder


def test_where_md5_is_forbidden(tmp_path):
    "Files are verified, images counted that stand in both parts, a run is computed."
    (tmp_path / "sitecustomize.py").write_text(FIPS)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "import hashlib; hashlib.md5(b'')"],
            check=True,
            capture_output=True,
            env={**os.environ, **env},
        )
    done = wavescat("data info textures", store=tmp_path / "s", env=env)
    assert done.returncode == 0 and "seen in both" in done.stdout, done.stderr
    done = wavescat(
        "run variance", *SMALL, "--reports", tmp_path / "r", store=tmp_path / "s", env=env
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "x").write_bytes(b"abc")
    code = """
import sys
from pathlib import Path
from wavescat.data.checksums import check_file
check_file(Path(sys.argv[1]), 'md5:900150983cd24fb0d6963f7d28e17f72', '')
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "x"], env={**os.environ, **env}
        ).returncode
        == 0
    )


def test_hashes_that_are_no_security_say_so():
    for path in (ROOT / "wavescat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("md5", "sha1", "new")
                and getattr(node.func.value, "id", "") == "hashlib"
            ):
                assert "usedforsecurity" in {k.arg for k in node.keywords}, (
                    f"{path.name}, line {node.lineno}"
                )


def test_text_files_have_an_encoding():
    "What is read and written doesn't depend on the machine's language."
    modules = list((ROOT / "wavescat").rglob("*.py"))
    assert len(modules) > 200
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            binary = any(
                isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:2]
            )
            if isinstance(node.func, ast.Attribute):
                text = node.func.attr in ("read_text", "write_text", "fdopen")
            else:
                text = getattr(node.func, "id", "") == "open"
            if text and not binary:
                assert "encoding" in {k.arg for k in node.keywords}, (
                    f"{path.name}, line {node.lineno}"
                )


def test_another_kernel_called_python3(tmp_path):
    "Pages are made by this interpreter's own kernel."
    spec = tmp_path / "data" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": ["/bin/false", "{connection_file}"],
                "display_name": "other",
                "language": "python",
            }
        )
    )
    done = wavescat(
        "run variance",
        *SMALL,
        "--reports",
        tmp_path / "r",
        store=tmp_path / "s",
        env={"JUPYTER_DATA_DIR": str(tmp_path / "data")},
    )
    assert done.returncode == 0 and list((tmp_path / "r" / "variance").glob("smoke-*.html")), (
        done.stderr
    )


@pytest.mark.parametrize(
    "code, says",
    [
        (
            "import sys; sys.modules['papermill'] = None; import importlib.util as u; f = u.find_spec\n"
            "u.find_spec = lambda m, *a: None if m == 'papermill' else f(m, *a)",
            "pages can't be made without papermill",
        ),
        (
            "import ipykernel.kernelspec as k; d = k.get_kernel_dict\n"
            "argv = ['/bin/false', '{connection_file}']\n"
            "k.get_kernel_dict = lambda *a, **kw: d(*a, **kw) | {'argv': argv}",
            "starts no Jupyter kernel",
        ),
    ],
)
def test_pages_that_cannot_be_made_are_said_first(code, says, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nfrom wavescat.apps.cli import main; main()",
            "run",
            "variance",
            *SMALL,
            "--reports",
            tmp_path / "r",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "WAVESCAT_RUNS": str(tmp_path / "s")},
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and says in done.stderr, (
        done.stderr
    )
    assert not list((tmp_path / "s").glob("*")), "nothing was computed"


def test_a_terminal_that_shows_ascii_only(tmp_path):
    "Every letter that it can't show is shown as its number, and the index is written."
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = wavescat(
        "run variance", *SMALL, "--reports", tmp_path / "r", store=tmp_path / "s", env=env
    )
    assert done.returncode == 0 and (tmp_path / "r" / "index.html").is_file(), done.stderr
    for args in (
        ["list"],
        ["list", "variance"],
        ["data", "list"],
        ["runs", "list"],
        ["--help"],
        ["train", "--help"],
    ):
        done = wavescat(*args, store=tmp_path / "s", env=env | {"PYTHONIOENCODING": "ascii:strict"})
        assert done.returncode == 0 and "Traceback" not in done.stderr, (args, done.stderr)


def test_a_name_that_is_no_text(tmp_path):
    "A folder whose name isn't UTF-8: runs work; a study, whose page can't hold the name, says so."
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/leaves\xff"))
    try:
        _images(folder, n=6)
    except OSError:
        pytest.skip("this disk takes UTF-8 only")
    (folder / "a" / "0.png").rename(folder / "a" / os.fsdecode(b"\xe9.png"))
    env = {"WAVESCAT_CACHE": str(tmp_path / "cache")}
    done = wavescat(
        "train",
        "-p",
        f"dataset={folder}",
        "-p",
        "size=32",
        "-p",
        "width=2",
        "-p",
        "epochs=1",
        "-p",
        "batch_size=4",
        store=tmp_path / "s",
        env=env,
    )
    assert done.returncode == 0 and "test_accuracy" in done.stdout, done.stderr
    for args in (
        ["runs", "list"],
        ["runs", "list", "--csv"],
        ["runs", "log"],
        ["data", "info", folder],
        ["runs", "show", next((tmp_path / "s").glob("*")).name],
    ):
        done = wavescat(*args, store=tmp_path / "s", env=env)
        assert done.returncode == 0 and (
            "leaves\\udcff" in done.stdout or args[1] in ("info", "log")
        ), (args, done.stderr)
    done = wavescat(
        "run variance",
        *SMALL,
        "-p",
        f"dataset={folder}",
        "--reports",
        tmp_path / "r",
        store=tmp_path / "s2",
        env=env,
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "must be text in UTF-8" in done.stderr
    ), done.stderr
    write_page(tmp_path / "page.html", "leaves\udcff ±")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "leaves\\udcff ±"


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", 'it\'s "one"', "grün é", "a,b"])
def test_folders_of_any_name(name, tmp_path, smoke):
    "Reports, figures and links; the store and the data beside them."
    folder = tmp_path / name
    done = wavescat(
        "report variance --preset smoke",
        "--reports",
        folder / "r",
        "--figures",
        folder / "f",
        store=smoke[1],
    )
    assert done.returncode == 0, done.stderr
    page = (folder / "r" / "index.html").read_text(encoding="utf-8")
    assert 'href="variance/smoke.html"' in page and list(
        (folder / "f" / "variance" / "smoke").glob("*.svg")
    )


def test_links_to_pages_of_any_name(tmp_path):
    "A preset of one's own may be called anything."
    gave = {
        "study": "variance",
        "title": "Variance",
        "command": "c",
        "parameters": {"preset": "50% #1?"},
        "headline": "h",
        "runs": [],
        "effects": [],
    }
    (tmp_path / "variance").mkdir()
    (tmp_path / "variance" / "50% #1?.json").write_text(json.dumps(gave))
    (tmp_path / "variance" / "50% #1?.html").write_text("<html></html>")
    assert 'href="variance/50%25%20%231%3F.html"' in index(tmp_path).read_text(encoding="utf-8")


def test_the_home_folder_in_every_path(tmp_path, monkeypatch):
    "A shell leaves ~ as it is in --reports=~/r and in an env file."
    from wavescat.data.split_files import read_split

    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, place in (
        ("WAVESCAT_RUNS", paths.runs_dir),
        ("WAVESCAT_DATA", data_dir),
        ("WAVESCAT_CACHE", cache_dir),
    ):
        monkeypatch.setenv(variable, "~/here")
        assert place() == tmp_path / "here", variable
    with pytest.raises(FileNotFoundError):
        read_split(Path("~/none.json"), None)
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match="is no split"):
        read_split(Path("~/none.json"), None)
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        load("~nobody-of-this-name/leaves")
    done = wavescat(
        "run variance",
        *SMALL,
        "--reports=~/r",
        "--figures=~/f",
        store="~/s",
        cwd=ROOT,
        env={"HOME": str(tmp_path)},
    )
    assert (
        done.returncode == 0
        and (tmp_path / "r" / "index.html").is_file()
        and list((tmp_path / "f").rglob("*.svg"))
        and len(list((tmp_path / "s").glob("*"))) == 1
    ), done.stderr
    assert not (ROOT / "~").exists()
    identity = next((tmp_path / "s").glob("*")).name
    picture = _images(tmp_path / "own") / "a" / "0.png"
    done = wavescat(
        "predict",
        identity,
        "~/own/a/0.png",
        "--gradcam=~/why.png",
        store="~/s",
        env={"HOME": str(tmp_path)},
    )
    assert picture.is_file() and done.returncode == 0 and (tmp_path / "why.png").is_file(), (
        done.stderr
    )
    done = wavescat(
        (
            "train -p model=linear -p augment=none -p per_class=2 -p epochs=1 "
            "--err=~/e.png --copy ~/c-"
        ),
        store="~/s",
        env={"HOME": str(tmp_path)},
    )
    assert (
        done.returncode == 0
        and (tmp_path / "e.png").is_file()
        and (tmp_path / "c-result.json").is_file()
    ), done.stderr
    done = wavescat(
        (
            "train -p model=linear -p augment=none -p per_class=2 -p epochs=0 "
            "-p weights=~/c-weights.safetensors"
        ),
        store="~/s",
        env={"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr


def test_a_cache_that_can_only_be_read(tmp_path, monkeypatch):
    "A set that it holds is taken from it; one that it doesn't hold is refused."
    monkeypatch.setenv("WAVESCAT_CACHE", str(tmp_path / "cache"))
    held, new = _images(tmp_path / "held"), _images(tmp_path / "new")
    first = load(str(held))
    load.cache_clear()

    def refuse(*args, **kw):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "access", lambda place, mode: mode != os.W_OK)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert load(str(held)).checksum == first.checksum
    with pytest.raises(ValueError, match="choose another with WAVESCAT_CACHE"):
        load(str(new))


def test_a_store_that_can_only_be_read(tmp_path, smoke):
    "What only reads it needs no more."
    import shutil

    shutil.copytree(smoke[1], tmp_path / "s")
    code = """
import os
real = os.access
def access(path, mode, **kw):
    return real(path, mode, **kw) and not (mode & os.W_OK and str(path).endswith('/s'))
os.access = access
from wavescat.apps.cli import main
main()
"""
    for args in (
        ["report", "variance", "--preset", "smoke", "--reports", tmp_path / "r"],
        ["runs", "list"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "WAVESCAT_RUNS": str(tmp_path / "s")},
        )
        assert done.returncode == 0, done.stderr
