"""The house is in order: exported, clean, pinned, arrows pointing up, a wheel that builds."""

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import COMMAND, ROOT

NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
STUDIES = sorted((ROOT / "nbs" / "studies").glob("*.ipynb"))
MODULES = sorted(p for p in (ROOT / "wavescat").glob("*/*.py") if p.name != "__init__.py")
# package → the packages that it may import
ARROWS = {
    "core": set(),
    "scattering": {"core"},
    "data": {"core"},
    "models": {"core", "scattering"},
    "runs": {"core"},
    "training": {"core", "scattering", "data", "models", "runs"},
}
ARROWS["analysis"] = {*ARROWS}
ARROWS["figures"] = {*ARROWS}
ARROWS["studies"] = {*ARROWS}
ARROWS["apps"] = {*ARROWS}


def _run(*args, **kw):
    return subprocess.run(
        [*map(str, args)], capture_output=True, text=True, timeout=300, **{"cwd": ROOT, **kw}
    )


def test_exported_and_clean(tmp_path):
    "Cleaning and exporting a copy changes nothing."
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv", ".runs", "reports", "__pycache__", ".*_cache"
        ),
    )
    for tool in ("nbdev_clean", "nbdev_export"):
        module = {"nbdev_clean": "nbdev.clean", "nbdev_export": "nbdev.doclinks"}[tool]
        done = _run(sys.executable, "-c", f"from {module} import {tool}; {tool}()", cwd=copy)
        assert done.returncode == 0, done.stderr
    for folder in ("nbs", "wavescat"):
        for path in sorted((ROOT / folder).rglob("*")):
            if (
                path.is_file()
                and path.suffix in (".py", ".ipynb")
                and ".ipynb_checkpoints" not in path.parts
            ):
                assert (copy / path.relative_to(ROOT)).read_text() == path.read_text(), (
                    f"{path.relative_to(ROOT)}: run nbdev-clean and nbdev-export"
                )


def test_ruff():
    done = _run(
        sys.executable, "-m", "ruff", "check", "--select", "F", "wavescat", "tests", "nbs", cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


def test_ruff_sees_undefined_names(tmp_path):
    (tmp_path / "m.py").write_text("def f(): return nowhere\n")
    assert "F821" in _run(sys.executable, "-m", "ruff", "check", "--select", "F", tmp_path).stdout


def test_environment_has_the_same_pins():
    lock = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().split()
        if "==" in line
    )
    conda = dict(
        re.findall(
            r"^\s+- ([\w.-]+)==([\w.+!-]+)$", (ROOT / "environment.yml").read_text(), flags=re.M
        )
    )
    assert lock == conda and len(lock) > 50 and lock["torch"] == "2.13.0"


def test_every_dependency_is_locked():
    lock = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text().split()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + [
        d for group in project["optional-dependencies"].values() for d in group
    ]:
        assert re.match(r"[\w.-]+", text)[0].lower() in lock, text


def _imported_modules(path):
    "Modules of the package that a module imports, as (package, module)."
    package = path.parent.name
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        where = node.module.split(".") if node.module else []
        if node.level == 0 and where[0] == "wavescat":
            where = where[1:]
        elif node.level == 1:
            where = [package, *where]
        elif node.level == 0:
            continue
        names = [where] if len(where) == 2 else [[*where, a.name] for a in node.names]
        found |= {tuple(n) for n in names}
    return found


def test_packages_are_those_of_the_table():
    assert {p.parent.name for p in MODULES} == set(ARROWS)
    assert {
        p.name.partition("_")[2] for p in (ROOT / "nbs" / "lib").iterdir() if p.is_dir()
    } == set(ARROWS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_arrows_point_up(path):
    package = path.parent.name
    wrong = {p for p, _ in _imported_modules(path)} - ARROWS[package] - {package}
    assert not wrong, f"{package}.{path.stem} imports {wrong}, which {package} may not"


def test_modules_do_not_import_in_circles():
    imports = {(p.parent.name, p.stem): _imported_modules(p) for p in MODULES}
    assert all(m in imports for found in imports.values() for m in found)
    while ready := {m for m, found in imports.items() if not found & imports.keys()}:
        for m in ready:
            del imports[m]
    assert not imports, f"these import one another: {sorted(imports)}"


def test_the_public_names():
    "What `import wavescat` offers; it loads torch only when one of them is asked for."
    code = "import sys, wavescat; assert 'torch' not in sys.modules; print(*sorted(wavescat.__all__)); [getattr(wavescat, n) for n in wavescat.__all__]"
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "Experiment",
        "FilterBank",
        "LearnedBank",
        "Scattering2D",
        "ScatteringTransformer",
        "__version__",
        "experiment",
        "filter_bank",
        "load_model",
        "run",
        "scattering2d",
    ]


def test_computing_needs_little():
    "A bare machine with torch can compute: no notebook tools, no plotting, no oracle."
    code = "import sys, wavescat.training.train; print(*[m for m in ('mlflow', 'dask', 'distributed', 'accelerate', 'papermill', 'kymatio', 'matplotlib', 'pandas', 'nbconvert', 'IPython', 'scipy', 'safetensors', 'pooch', 'requests', 'filelock', 'joblib', 'PIL', 'typer', 'platformdirs') if m in sys.modules])"
    assert _run(sys.executable, "-c", code).stdout.split() == []


def test_a_run_with_torch_alone(tmp_path):
    "Where safetensors and the rest aren't installed, a run is computed, stored, and its model loaded all the same."
    code = """
import sys
for m in ('mlflow', 'dask', 'distributed', 'accelerate', 'safetensors', 'pooch', 'joblib', 'platformdirs', 'pandas', 'matplotlib', 'kymatio', 'papermill', 'tqdm', 'statsmodels', 'typer', 'IPython', 'nbformat'): sys.modules[m] = None
from wavescat.runs.experiment import experiment
from wavescat.runs.store import run_dir
from wavescat.training.train import load_model, run
e = experiment(model='scatresnet18', L=2, width=2, per_class=2, epochs=1, batch_size=8)
r = run(e)
assert r['test_accuracy'] > 0 and (run_dir(e) / 'weights.pt').is_file() and not load_model(e).training
"""
    done = _run(sys.executable, "-c", code, env={**os.environ, "WAVESCAT_RUNS": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_no_star_imports_and_no_large_files():
    tracked = [ROOT / f for f in _run("git", "ls-files").stdout.splitlines()]
    for path in tracked:
        if path.is_file():
            assert path.stat().st_size < (300_000 if path.suffix == ".ipynb" else 1_500_000), path
            if path.suffix == ".py":
                assert not re.search(r"^from \S+ import \*", path.read_text(), flags=re.M), path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_form(path):
    nb = json.loads(path.read_text())
    first = "".join(nb["cells"][0]["source"])
    assert nb["cells"][0]["cell_type"] == "markdown" and first.startswith("# ")
    assert path.stat().st_size < 300_000
    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error" and output.get("name") != "stderr", path
            assert not re.search(r"site-packages|/(home|root|Users|work)/", json.dumps(output)), (
                "a path of somebody's machine"
            )


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_study_form(path, caplog):
    "papermill reads every parameter as we do, and the template's own defaults are the preset `quick`."
    import papermill
    from wavescat.studies.parameters import parameters
    from wavescat.studies.presets import resolve

    nb = json.loads(path.read_text())
    tags = [t for c in nb["cells"] for t in c["metadata"].get("tags", [])]
    assert tags.count("parameters") == tags.count("plan") == 1
    assert not any(c.get("outputs") for c in nb["cells"]), "templates hold no outputs"
    assert (
        set(papermill.inspect_notebook(str(path))) == set(parameters(path.stem))
        and "Unable to parse" not in caplog.text
    )
    quick = resolve(path.stem, "quick")
    assert quick == {n: p.default for n, p in parameters(path.stem).items()}
    assert all(
        p.help and type(p.default).__name__ == p.type == type(quick[n]).__name__
        for n, p in parameters(path.stem).items()
    )


@pytest.mark.parametrize("preset", ["smoke", "quick", "cpu", "paper"])
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_presets_plan(path, preset):
    "Every preset of every study gives a list of experiments; paper has the published protocol."
    from wavescat.studies.plans import experiments_of
    from wavescat.studies.presets import resolve

    experiments = experiments_of(path.stem, resolve(path.stem, preset))
    if path.stem in ("speed", "stability"):  # they measure, and train nothing
        assert experiments == []
        return
    assert (
        len(experiments) == len(set(experiments)) >= (3 if path.stem == "seeing" else 4)
    )  # seeing looks at one run of each model
    if (
        preset == "paper" and path.stem == "filters"
    ):  # full batches of 1,000 images, from the tight frame, fixed and learned
        assert {
            (e.dataset, 10 * e.per_class, e.batch_size, e.init, e.augment) for e in experiments
        } == {("cifar10", 1000, 1000, "tight-frame", "none")} and [
            e.learn for e in experiments
        ] == [None, "canonical", "equivariant", "pixelwise"]
    elif preset == "paper" and path.stem == "biomass":
        assert {
            (
                e.dataset,
                e.epochs,
                e.batch_size,
                e.lr,
                e.momentum,
                e.weight_decay,
                e.augment,
                e.loss,
                e.target_scale,
                e.width,
            )
            for e in experiments
        } == {("csiro-biomass", 200, 32, 1e-4, 0.9, 5e-4, "biomass", "mse", 2000, 64)}
        assert {(e.split, e.split_seed) for e in experiments} >= {
            ("stratified", 42),
            ("date", 42),
            ("state", 42),
        }
    elif preset == "paper" and path.stem == "tuned":  # the published settings are among those tried
        tried = {
            m: {
                (e.lr, e.weight_decay, e.epochs)
                for e in experiments
                if e.model == m and e.seed == 100
            }
            for m in ("resnet18", "scatresnet18")
        }
        assert (
            tried["resnet18"] == tried["scatresnet18"]
            and (0.1, 5e-4, 200) in tried["resnet18"]
            and len(tried["resnet18"]) == 45
        )
    elif (
        preset == "paper" and path.stem == "tiny_imagenet"
    ):  # every backbone behind either front and on pixels, by the published schedule
        backbones = ("resnet14", "resnet18", "resnet50", "densenet", "inception-resnet", "alexnet")
        assert {e.model for e in experiments} == {
            f"{front}{b}" for front in ("scattering-", "s2d-", "") for b in backbones
        } and {e.order for e in experiments if e.model == "scattering-resnet14"} == {1, 2}
        assert {
            (
                e.dataset,
                e.per_class,
                e.epochs,
                e.batch_size,
                e.lr,
                e.momentum,
                e.weight_decay,
                e.schedule,
                e.points,
                e.step_factor,
                e.augment,
                e.width,
                e.validation,
            )
            for e in experiments
            if "alexnet" not in e.model
        } == {
            (
                "tiny-imagenet",
                None,
                15,
                128,
                0.1,
                0.9,
                5e-4,
                "steps",
                "4/8/12",
                0.2,
                "scattering-tiny",
                64,
                0,
            )
        }
    elif preset == "paper" and path.stem == "wytiny":
        assert {e.norm for e in experiments} == {"batch", "group", "layer", "ghost-batch"} and {
            e.convolution for e in experiments
        } == {"plain", "depthwise", "depthwise-separable"}
        from wavescat.studies.published import protocol

        assert {tuple(getattr(e, k) for k in protocol("wytiny")) for e in experiments} == {
            tuple(protocol("wytiny").values())
        }
    elif preset == "paper" and path.stem == "linear_and_alexnet":
        assert {(e.model, e.loss, e.margin, e.lr) for e in experiments} == {
            ("linear", "hinge", 20, 0.001),
            ("linear", "squared-hinge", 20, 0.001),
            ("linear", "cross-entropy", 1, 0.001),
            ("alexnet", "cross-entropy", 1, 0.001),
            ("alexnet", "cross-entropy", 1, 0.0001),
        } and {(e.dataset, e.optimizer, e.per_class) for e in experiments} == {
            ("tiny-imagenet", "adam", None)
        }
    elif preset == "paper" and path.stem in ("parametric", "challenge"):
        from wavescat.studies.published import published

        seeds = published("parametric")["seeds"]["cifar10"]
        assert (
            len(seeds) == 10
            and {e.seed for e in experiments} == {e.split_seed for e in experiments} == set(seeds)
            and {
                (
                    e.schedule,
                    e.momentum,
                    e.weight_decay,
                    e.filter_weight_decay,
                    e.augment,
                    e.validation,
                    e.widen,
                )
                for e in experiments
                if e.augment != "parametric-cifar"
            }
            == {("one-cycle", 0.9, 5e-4, 0, "parametric-cifar-code", 0, 8)}
        )
        assert {
            (e.model, e.learn, e.init) for e in experiments if e.augment == "parametric-cifar"
        } == ({("scattering-linear", None, "tight-frame")} if path.stem == "parametric" else set())
        schedules = {
            (e.model.partition("@")[0], e.per_class): (
                e.epochs,
                e.batch_size,
                e.lr,
                e.filter_lr if e.learn else None,
                e.split,
            )
            for e in experiments
            if e.learn or e.model == "wrn"
        }
        expected = {
            ("scattering-linear", n): (epochs, batch, lr, 0.1, "permuted" if n else "stratified")
            for n, epochs, batch, lr in (
                (10, 5000, 128, 0.06),
                (50, 1000, 500, 0.13),
                (100, 500, 1000, 0.2),
                (None, 500, 1024, 0.2),
            )
        }
        expected |= {("scattering-linear-no-affine", n): told for (_, n), told in expected.items()}
        expected |= {
            (model, n): (
                epochs,
                batch,
                0.1,
                0.1 if model == "scattering-wrn" else None,
                "permuted" if n else "stratified",
            )
            for model in ("scattering-wrn", "wrn")
            for n, epochs, batch in (
                (10, 3000, 128),
                (50, 2000, 128),
                (100, 1000, 128),
                (None, 500, 1024),
            )
        }
        assert schedules == {
            k: v
            for k, v in expected.items()
            if path.stem == "parametric" or k[1] == 10 and k[0] != "scattering-linear-no-affine"
        }
    elif preset == "paper":
        for e in experiments:
            if path.stem == "transfer" and e.classes == "5-9":
                assert (e.epochs, e.lr, e.eval_every) == (20, 0.01, 1)
                continue
            if path.stem == "transfer":
                assert (e.classes, e.eval_every, e.validation) == ("0-4", 200, 5000)
                e = dataclasses.replace(e, eval_every=1)
            assert (
                e.epochs,
                e.batch_size,
                e.lr,
                e.momentum,
                e.weight_decay,
                e.augment,
                e.width,
                e.eval_every,
            ) == (
                200,
                128,
                0.1,
                0.9,
                5e-4,
                "none"
                if path.stem == "seeing" and e.model == "scattering-linear"
                else "scatresnet",
                64,
                1,
            )
        assert {e.validation for e in experiments} <= {5000, 10000}


def test_readme_says_what_the_reports_say(tmp_path):
    from wavescat.studies.index import readme

    path = Path(shutil.copy(ROOT / "README.md", tmp_path))
    before = path.read_text()
    assert readme(ROOT / "reports", path) == before, "run make readme"


def test_wheel(tmp_path):
    "The wheel builds, and the package works from it alone, its studies too."
    done = _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path)
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "wavescat/py.typed",
        "wavescat/_studies/baseline.ipynb",
        "wavescat/_studies/settings.ini",
        "wavescat/_studies/page.html",
        "wavescat/_studies/published.toml",
    } <= set(names)
    (tmp_path / "elsewhere").mkdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = _run(
        sys.executable,
        "-c",
        COMMAND,
        "list",
        "baseline",
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0 and "per_class" in done.stdout, done.stderr


def test_pre_commit_script(tmp_path):
    assert _run("sh", "-n", ROOT / ".hooks" / "pre-commit").returncode == 0
