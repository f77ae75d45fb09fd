"""The command: what it refuses, what it keeps, what it does again and what it doesn't."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import COMMAND, ROOT, papermill, wavescat

SMALL = ["-p", "seeds=0", "-p", "epochs=1"]


@pytest.mark.parametrize(
    "args, says",
    [
        (["run", "basline"], "did you mean baseline"),
        (["run", "baseline", "--preset", "smok"], "did you mean smoke"),
        (["run", "baseline", "-p", "epoch=3"], "did you mean epochs"),
        (["run", "baseline", "-p", "epochs=many"], "epochs must be int"),
        (["run", "baseline", "-p", "epochs"], "KEY=VALUE"),
        (["run", "baseline", "-p", "dataset=texture"], "did you mean textures or mixtures?"),
        (["run", "baseline", "-p", "engine=kymation"], "did you mean kymatio?"),
        (["run", "l_sweep", "-p", "L=0-3"], "L must be between 1 and 20"),
        (["run", "l_sweep", "-p", "L=21"], "L must be between 1 and 20"),
        (["run", "l_sweep", "-p", "L=a"], "expected whole numbers such as 1-20"),
        (["run", "baseline", "-p", "per_class=1000"], "per_class must be between 1 and 90"),
        (["run", "variance", "-p", "upsample=cubic"], "unknown upsample"),
        (["run", "variance", "-p", "lr=nan"], "lr must be a finite number"),
        (["run", "variance", "-p", "seeds="], "expected whole numbers"),
        (["run", "l_sweep", "-p", "validation=0"], "validation must be at least 1"),
        (["run", "baseline", "-p", "per_class=2,2"], "list each once"),
        (["train", "-p", "seed=99999999999999999999"], "seed must be less than"),
        (["list", "--preset", "nope"], "unknown preset"),
        (["train", "-p", "model=resnet"], "did you mean resnet50 or resnet18"),
        (["train", "-p", "L=3"], "resnet18 has no L"),
        (["list", "variances"], "did you mean variance"),
    ],
)
def test_refused_in_one_line(args, says, tmp_path):
    done = wavescat(
        *args, *(["--reports", tmp_path / "r"] if args[0] == "run" else []), store=tmp_path / "s"
    )
    assert (
        done.returncode == 2
        and says in done.stderr
        and done.stderr.count("\n") == 1
        and done.stdout == ""
    ), done.stderr
    assert not (tmp_path / "r").exists() and not (tmp_path / "s").exists()


def test_reports_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = wavescat(
        "run variance --preset smoke", "--reports", tmp_path / "file" / "r", store=tmp_path / "s"
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "choose another with --reports" in done.stderr
        and not (tmp_path / "s").exists()
    ), done.stderr


def test_a_run_that_diverges_still_gives_a_page(tmp_path):
    done = wavescat(
        "run baseline --preset smoke -p lr=1e30 -p per_class=2 -p seeds=0",
        "--reports",
        tmp_path / "r",
        store=tmp_path / "s",
    )
    assert done.returncode == 0 and list((tmp_path / "r" / "baseline").glob("smoke-*.html")), (
        done.stderr
    )


def test_own_images_by_a_relative_path(tmp_path):
    """Images of several sizes are refused before anything is computed.

    With size= they are run, and rendered where the command was given."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for k in range(24):
        (tmp_path / "leaves" / ("oak", "US$ or $_x")[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (18 + k % 3, 20, 3), np.uint8)).save(
            tmp_path / "leaves" / ("oak", "US$ or $_x")[k % 2] / f"{k}.png"
        )
    args = [
        "run",
        "seeing",
        "--preset",
        "smoke",
        "-p",
        "dataset=leaves",
        "-p",
        "validation=4",
        "--reports",
        tmp_path / "r",
    ]
    mixed = wavescat(*args, store=tmp_path / "s", cwd=tmp_path)
    assert mixed.returncode == 2 and "size=" in mixed.stderr and not (tmp_path / "s").exists(), (
        mixed.stderr
    )
    done = wavescat(*args, "-p", "size=16", store=tmp_path / "s", cwd=tmp_path)
    page = next((tmp_path / "r" / "seeing").glob("*.html"))
    assert (
        done.returncode == 0 and "failed" not in page.name and " 4 test images" in page.read_text()
    ), done.stderr


def test_missing_data_is_refused_in_one_line(tmp_path):
    done = wavescat(
        "run baseline --preset smoke -p dataset=cifar10",
        store=tmp_path,
        env={
            "WAVESCAT_DATA": str(tmp_path / "none"),
            "WAVESCAT_CIFAR10_URL": "http://127.0.0.1:9/x.tar.gz",
        },
    )
    assert (
        done.returncode == 2
        and "WAVESCAT_DATA" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    ), done.stderr


def test_settings_that_no_study_knows(tmp_path):
    import shutil

    shutil.copytree(ROOT / "nbs" / "studies", tmp_path / "nbs" / "studies")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n[quick]\nbaseline.epoch = 3\n")
    done = wavescat("run baseline", store=tmp_path / "s", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "section [quick]: unknown setting 'epoch'; did you mean epochs" in done.stderr
    ), done.stderr


def test_run_again_computes_nothing(smoke, tmp_path):
    folder, store, first = smoke
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    dry = wavescat(
        "run all --preset smoke", "--dry-run", "--runs", store, store=tmp_path / "unused"
    )
    assert (
        dry.returncode == 0
        and "together: 98 runs, 98 stored, about 0 s to compute" in dry.stdout
        and not (tmp_path / "unused").exists()
    ), dry.stdout
    again = wavescat(
        "run variance --preset smoke",
        "--reports",
        tmp_path,
        "--figures",
        tmp_path / "figures",
        store=store,
    )
    assert again.returncode == 0 and {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before
    numbers = [json.loads((f / "variance" / "smoke.json").read_text()) for f in (folder, tmp_path)]
    assert numbers[0] == numbers[1]
    stored = sorted((tmp_path / "figures" / "variance" / "smoke").iterdir())
    assert (
        len(stored) == 2 * (tmp_path / "variance" / "smoke.html").read_text().count("<img ") > 0
        and all(p.read_bytes()[:4] == (b"%PDF" if p.suffix == ".pdf" else b"<?xm") for p in stored)
        and stored[0].name.startswith("01-")
    )
    assert "headline" in first.stdout and str(folder / "index.html") in first.stdout


@pytest.mark.parametrize(
    "command", [("run", "baseline"), ("report", "baseline"), ("sweep", "seed=0-1"), ("train",)]
)
def test_a_folder_of_data_that_is_missing_is_refused(tmp_path, command):
    done = wavescat(
        *command,
        "--data",
        tmp_path / "nowhere",
        "--runs",
        tmp_path / "s",
        store=tmp_path / "unused",
    )
    assert (
        done.returncode == 2
        and f"--data {tmp_path / 'nowhere'} isn't a folder" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
        and not any(tmp_path.iterdir())
    ), done.stderr


def test_report_computes_nothing_and_says_what_is_missing(smoke, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(smoke[1], store)
    runs_of = lambda study: sorted(
        store / r["identity"]
        for r in json.loads((smoke[0] / study / "smoke.json").read_text())["runs"]
    )
    runs, alone = runs_of("variance"), runs_of("biomass")  # l_sweep and baseline have the first too
    for path in runs[1:] + alone:
        shutil.rmtree(path)
    done = wavescat("report --preset smoke", "--reports", tmp_path / "r", store=store)
    assert done.returncode == 0, done.stderr
    for study in ("baseline", "l_sweep", "variance"):
        assert (
            json.loads((tmp_path / "r" / study / "smoke.json").read_text())["missing"] >= 1
            and "missing" in (tmp_path / "r" / study / "smoke.html").read_text()
        )
    assert len(list(store.iterdir())) == len(list(smoke[1].iterdir())) - len(runs) + 1 - len(alone)
    assert (
        "left out, since no run is stored: biomass; compute with: wavescat run biomass --preset smoke"
        in done.stderr
        and not (tmp_path / "r" / "biomass").exists()
    )
    done = wavescat(
        "report variance --preset smoke", "--reports", tmp_path / "e", store=tmp_path / "empty"
    )
    assert (
        done.returncode == 2
        and "no run of variance is stored; compute with: wavescat run variance --preset smoke"
        in done.stderr
        and not (tmp_path / "e").exists()
    )


def test_stale_results_are_left_out_until_computed_again(smoke, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(smoke[1], store)
    for path in store.glob("*/result.json"):
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "code": "older", "test_accuracy": 99.0})
        )
    done = wavescat("report variance --preset smoke", "--reports", tmp_path / "r", store=store)
    text = (tmp_path / "r" / "variance" / "smoke.html").read_text()
    assert (
        done.returncode == 0
        and "4 computed by another version of the code" in text
        and "99.00" not in text
    )
    done = wavescat("run variance --preset smoke --dry-run", store=store)
    assert "4 of other code, to be computed again" in done.stdout


def test_two_seeds_for_two_things(tmp_path):
    "split_seed changes the images and not the weights; seed the weights and not the images."
    import torch

    from wavescat.data.class_splits import stratified
    from wavescat.data.load import load
    from wavescat.runs.experiment import experiment
    from wavescat.training.task import build_model

    labels = load("textures").train_labels
    images = {s: set(stratified(labels, 5, 16, s)[0]) for s in (1, 2)}
    assert images[1] != images[2]
    e = [
        experiment(model="scatresnet18", L=4, width=4, per_class=5, validation=16, split_seed=s)
        for s in (1, 2)
    ]
    weights = []
    for x in e:
        torch.manual_seed(x.seed)
        weights.append(build_model(x).state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_engine_kymatio_gives_the_same_study(smoke, tmp_path):
    pytest.importorskip("kymatio")
    done = wavescat(
        "run variance --preset smoke -p engine=kymatio", "--reports", tmp_path, store=tmp_path / "s"
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        json.loads(next((f / "variance").glob(name)).read_text())
        for f, name in ((smoke[0], "smoke.json"), (tmp_path, "smoke-*.json"))
    )
    assert (
        theirs["command"].endswith("-p engine=kymatio")
        and not (tmp_path / "variance" / "smoke.json").exists()
    ), "other parameters, another page"
    for a, b in zip(ours["runs"], theirs["runs"]):
        assert (
            abs(a["test_accuracy"] - b["test_accuracy"]) < 1
            and abs(a["train_loss"] - b["train_loss"]) < 1e-3
            and b["packages"]["kymatio"] == "0.3.0"
        )


def test_plain_papermill(tmp_path):
    "A template runs without our runner, from any folder."
    options = "-p L 2,4 -p seeds 0 -p epochs 1 -p width 2 -p validation 16 -p per_class 2"
    papermill("variance", "out.ipynb", *options.split(), folder=tmp_path)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_cell_that_fails(smoke, tmp_path):
    "Exit 1, the partial page kept and marked, the finished runs kept, the earlier page untouched."
    import shutil

    project = tmp_path / "project"
    shutil.copytree(ROOT / "nbs" / "studies", project / "nbs" / "studies")
    shutil.copy(ROOT / "settings.ini", project)
    template = project / "nbs/studies/variance.ipynb"
    nb = json.loads(template.read_text())
    at = next(i for i, c in enumerate(nb["cells"]) if "What can be said" in "".join(c["source"]))
    nb["cells"].insert(
        at,
        {
            "cell_type": "code",
            "id": "broken",
            "metadata": {},
            "source": "raise RuntimeError('the roof fell in')",
            "outputs": [],
            "execution_count": None,
        },
    )
    template.write_text(json.dumps(nb))
    done = wavescat(
        "run variance --preset smoke",
        *SMALL,
        "--reports",
        tmp_path / "r",
        store=tmp_path / "s",
        cwd=project,
    )
    assert (
        done.returncode == 1
        and "the roof fell in" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr
    page = next((tmp_path / "r/variance").glob("smoke-*.failed.html")).read_text()
    assert "Failed." in page and "the roof fell in" in page and "Every run" in page
    assert (
        not list((tmp_path / "r/variance").glob("*.json"))
        and len(list((tmp_path / "s").glob("*/result.json"))) == 2
    )


def test_a_run_that_fails(tmp_path):
    "One line, exit 1; what was finished stays."
    code = """
import sys, wavescat.apps.cli, wavescat.training.sweep
def broken(*a, **kw): raise MemoryError("no room")
wavescat.training.sweep.sweep = broken
wavescat.apps.cli.main()
"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "run",
            "variance",
            "--preset",
            "smoke",
            "--reports",
            str(tmp_path / "r"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "WAVESCAT_RUNS": str(tmp_path / "s")},
    )
    assert (
        done.returncode == 1
        and done.stderr
        == "wavescat: a run failed: MemoryError: no room; finished runs are kept "
        "(WAVESCAT_TRACEBACK=1 shows where)\n"
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_gone_on(how, tmp_path):
    "Finished runs are kept, no process is left over, and the next call does only the rest."
    args = [
        sys.executable,
        "-c",
        COMMAND,
        "run",
        "variance",
        "--preset",
        "smoke",
        "-p",
        "L=2",
        "-p",
        "seeds=0-5",
        "-p",
        "epochs=20",
        "--workers",
        "1",
        "--reports",
        str(tmp_path / "r"),
    ]
    env = {**os.environ, "WAVESCAT_RUNS": str(tmp_path / "s")}
    process = subprocess.Popen(
        args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def finished():
        return len(
            list((tmp_path / "s").glob("[0-9a-f]*/result.json"))
        )  # not what a killed process had begun to publish, in a directory with a dot

    start = time.monotonic()
    while finished() < 2 and process.poll() is None and time.monotonic() - start < 120:
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=60)
    stored = finished()
    assert (
        process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL) and 2 <= stored < 6
    )
    time.sleep(3)  # kernels and workers notice that they are alone
    after = finished()
    assert after <= stored + 1, "a worker went on alone"
    done = subprocess.run([*args, "--dry-run"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert f"6 runs, {after} stored" in done.stdout, done.stdout
    done = subprocess.run(args, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert (
        done.returncode == 0
        and finished() == 6
        and not list((tmp_path / "s").glob(".*"))
        and "wavescat run variance"
        in next((tmp_path / "r/variance").glob("smoke-*.html")).read_text()
    ), done.stderr
