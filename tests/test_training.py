"""Runs that are killed, that diverge, that run out of disk or memory; weights that can't be
trusted; the commands on stored runs."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, wavescat

TINY = [
    "-p",
    "model=scatresnet18",
    "-p",
    "L=2",
    "-p",
    "width=2",
    "-p",
    "per_class=2",
    "-p",
    "batch_size=8",
]


def _python(code, store, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "WAVESCAT_RUNS": str(store), **env},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A store with two runs, a diverged one and a failed one."
    store = tmp_path_factory.mktemp("trained")
    code = """
from wavescat.runs.experiment import experiment
from wavescat.runs.lock import claim
from wavescat.training.run import run
base = dict(model="scatresnet18", L=2, width=2, per_class=2, batch_size=8, epochs=2)
for options in (dict(), dict(seed=1), dict(lr=1e30)):
    print(run(experiment(**{**base, **options}))["identity"])
e = experiment(**{**base, "seed": 9})
try:
    with claim(e): raise RuntimeError("the roof fell in")
except RuntimeError: print(e.identity)
"""
    done = _python(code, store)
    assert done.returncode == 0, done.stderr
    return store, done.stdout.split()


def test_killed_while_it_cleared_up(trained, monkeypatch):
    """A result that is stored, beside what its run left on the way: the next who asks clears it
    away, unless it is newer, of somebody who computes it again."""
    from wavescat.runs.paths import run_dir, work_dir
    from wavescat.runs.query import experiment_of
    from wavescat.training.run import run

    monkeypatch.setenv("WAVESCAT_RUNS", str(trained[0]))
    e = experiment_of(trained[1][0])
    result, work = run_dir(e) / "result.json", work_dir(e)
    for later, stays in ((-1, False), (1, True)):
        work.mkdir()
        (work / "lock").touch()
        (work / "checkpoint.pt").touch()
        os.utime(work / "checkpoint.pt", (result.stat().st_mtime + later,) * 2)
        assert run(e)["identity"] == e.identity and work.exists() == stays
    import shutil

    shutil.rmtree(work)


def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    "Checkpoints after every step; SIGKILL at moments drawn anew every time, until the run is whole."
    code = """
import os, random, signal, sys, time
import torch
from wavescat.runs.experiment import experiment
from wavescat.runs.paths import work_dir
from wavescat.training.checks import check
from wavescat.training.run import run
e = experiment(
    model="scatresnet18", L=4, width=4, per_class=8, validation=16, epochs=8, batch_size=8,
    precision=sys.argv[1], mix="mixup",
)
torch.set_num_threads(1)
check(e)                                       # reads the images before the children do
point = work_dir(e) / "checkpoint.pt"
kills = 0
while True:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        run(e); os._exit(0)
    if sys.argv[2] == "whole": os.waitpid(child, 0); break
    before = os.stat(point).st_mtime_ns if point.exists() else 0
    # twice after a step of its own, however fast the machine
    while kills < 2 and (not point.exists() or os.stat(point).st_mtime_ns == before):
        time.sleep(.001)
    # ever longer: a step can take seconds here
    time.sleep(random.uniform(0, .2) if kills < 2 else random.expovariate(.7) * (1 + kills / 8))
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == 0: break
    kills += 1
    assert kills < 300
print(e.identity, kills)
"""
    for precision in ("float32", "bfloat16"):
        stores, kills = {}, {}
        for how in ("whole", "killed"):
            store = tmp_path / precision / how
            done = subprocess.run(
                [sys.executable, "-c", code, precision, how],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=900,
                env={**os.environ, "WAVESCAT_RUNS": str(store), "WAVESCAT_CHECKPOINT_SECONDS": "0"},
            )
            assert done.returncode == 0, done.stderr
            identity, kills[how] = done.stdout.split()
            stores[how] = store / identity
            assert [p.name for p in store.iterdir()] == [identity], "something was left over"
        assert int(kills["killed"]) >= 2
        for name in ("weights.safetensors", "history.json", "predictions.npy", "config.json"):
            assert (stores["whole"] / name).read_bytes() == (
                stores["killed"] / name
            ).read_bytes(), name
        ours, theirs = (json.loads((d / "result.json").read_text()) for d in stores.values())
        assert {k for k in ours if ours[k] != theirs[k]} <= {
            "seconds",
            "finished",
            "resumed",
        } and theirs["resumed"] >= 1


def test_diverged(trained):
    store, (_, _, diverged, _) = trained
    text = (store / diverged / "result.json").read_text()
    result = json.loads(text)
    assert (
        result["status"] == "diverged"
        and result["diverged_epoch"] >= 1
        and result["test_accuracy"] is None
        and "NaN" not in text + (store / diverged / "history.json").read_text()
    )
    done = wavescat("train", *TINY, "-p", "epochs=2", "-p", "lr=1e30", store=store)
    assert done.returncode == 0 and f"diverged in epoch {result['diverged_epoch']}" in done.stdout
    assert "Lower lr, or set clip." in done.stdout and result["began_finite"] is True


def test_no_lower_lr_is_advised_where_the_first_gradient_is_not_finite(tmp_path):
    net = """
import torch
class Net(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(classes))
    def forward(self, x): return self.w.sqrt() * x.mean((1, 2, 3))[:, None]
def net(shape, num_classes): return Net(shape, num_classes)
"""
    (tmp_path / "mine.py").write_text(net)
    settings = f"model={tmp_path / 'mine.py'}:net", "per_class=2", "epochs=2", "batch_size=8"
    done = wavescat("train", *(w for s in settings for w in ("-p", s)), store=tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "diverged in epoch 1" in done.stdout and "Lower lr" not in done.stdout
    assert "The gradient of the very first step wasn't finite" in done.stdout


def test_diverged_after_an_interruption_keeps_the_same_weights(tmp_path):
    code = """
import sys, torch
from wavescat.runs.experiment import experiment
from wavescat.runs.lock import Stopped
from wavescat.training.inference import load_model
from wavescat.training.run import run
torch.set_num_threads(1)
e = experiment(model="scatresnet18", L=2, width=2, per_class=8, batch_size=8, epochs=3, lr=1e9)
asked = 0
def stop():
    global asked
    asked += 1
    return sys.argv[1] == "stopped" and asked == 5
for _ in range(2):
    try: result = run(e, stop=stop); break
    except Stopped: pass
finite = all(v.isfinite().all() for v in load_model(e).state_dict().values())
print(e.identity, result["status"], result["resumed"], finite)
"""
    printed = {}
    for how in ("whole", "stopped"):
        done = subprocess.run(
            [sys.executable, "-c", code, how],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env={
                **os.environ,
                "WAVESCAT_RUNS": str(tmp_path / how),
                "WAVESCAT_CHECKPOINT_SECONDS": "0",
            },
        )
        assert done.returncode == 0, done.stderr
        printed[how] = done.stdout.split()
    assert [s[1:] for s in printed.values()] == [
        ["diverged", "0", "True"],
        ["diverged", "1", "True"],
    ]
    identity = printed["whole"][0]
    assert (tmp_path / "whole" / identity / "weights.safetensors").read_bytes() == (
        tmp_path / "stopped" / identity / "weights.safetensors"
    ).read_bytes()


def test_stopped_is_not_failed_and_an_old_failure_is_forgotten(tmp_path):
    code = """
from wavescat.runs.experiment import experiment
from wavescat.runs.lock import claim
from wavescat.runs.progress import failure
from wavescat.runs.query import runs
from wavescat.runs.lock import Stopped
from wavescat.training.run import run
e = experiment(model="scatresnet18", L=2, width=2, per_class=2, batch_size=8, epochs=3)
try:
    with claim(e): raise OSError("disk")
except OSError: pass
print(runs()[0]["status"], runs()[0]["error"])
try: run(e, stop=lambda: True)
except Stopped: pass
print(runs()[0]["status"], failure(e))
print(run(e)["status"])
"""
    done = _python(code, tmp_path, WAVESCAT_CHECKPOINT_SECONDS="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["failed OSError: disk", "stopped None", "done"]


def test_a_head_on_cached_features_in_parts(tmp_path):
    "One batch of all images, computed in parts: the parts are drawn anew every epoch, cached or not."
    code = """
import torch
from wavescat.training.distributed import World
from wavescat.runs.experiment import experiment
from wavescat.training.trainer import Training
from wavescat.data.batches import Batches
e = experiment(
    model="scattering-linear", L=4, order=1, per_class=10, augment="none", batch_size=128,
    epochs=3, lr=.01, accumulate=8,
)
cached, plain = (Training(e, World(torch.device("cpu"))) for _ in range(2))
data = plain.data
plain.forward = plain.model
plain.train = Batches(
    data.train, data.train_labels, data.mean, data.std, "cpu", plain.task.split.train
)
for _ in range(3): print(*(round(t.epoch(lambda: None)["train_loss"], 3) for t in (cached, plain)))
"""
    done = _python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        a, b = map(float, line.split())
        assert a == pytest.approx(b, abs=0.01)


def test_what_no_launcher_made_and_what_cannot_train_is_refused(tmp_path):
    from PIL import Image

    for env, message in (
        ({"WORLD_SIZE": "2"}, "no launcher says"),
        ({"WORLD_SIZE": "abc"}, "isn't a number of processes"),
        ({"WAVESCAT_CHECKPOINT_SECONDS": "abc"}, "WAVESCAT_CHECKPOINT_SECONDS=abc"),
    ):
        done = wavescat("train", *TINY, "-p", "epochs=1", store=tmp_path / "s", env=env)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )
    done = wavescat("train", *TINY, "-p", "epochs=1", store=tmp_path / "s", env={"RANK": "1"})
    assert done.returncode == 0 and "test_accuracy" in done.stdout, "RANK alone says nothing"
    for part, n in (("train", 9), ("test", 2)):
        for c in "ab":
            for i in range(n):
                place = tmp_path / "tiny" / part / c
                place.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (20 * i, 90 * (c == "a"), 60)).save(place / f"{i}.png")
    for model in (
        ["-p", "model=resnet18", "-p", "width=2"],
        ["-p", "model=scattering-linear", "-p", "J=3", "-p", "augment=none"],
    ):
        done = wavescat(
            "train",
            "-p",
            f"dataset={tmp_path / 'tiny'}",
            *model,
            "-p",
            "epochs=1",
            "-p",
            "batch_size=17",
            store=tmp_path / "s",
        )
        assert done.returncode == 2 and "leave one image alone" in done.stderr, done.stderr
    for condition in ("epochs==2", "seed!==99", "epochs=", "epochs=9-1", "test_accuracy=>3"):
        done = wavescat("runs rm", "-y", "-w", condition, store=tmp_path / "s")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, (condition, done.stderr)
    assert len(list((tmp_path / "s").glob("*"))) == 1


def test_a_checkpoint_that_is_damaged_or_of_other_code_is_not_used(tmp_path):
    code = """
import torch
from wavescat.runs.experiment import experiment
from wavescat.runs.checkpoint import load_checkpoint
from wavescat.runs.paths import work_dir
from wavescat.runs.lock import Stopped
from wavescat.training.run import run
e = experiment(model="scatresnet18", L=2, width=2, per_class=2, batch_size=8, epochs=3)
def stop():
    try: run(e, stop=lambda: True)
    except Stopped: return work_dir(e) / "checkpoint.pt"
path = stop()
path.write_bytes(path.read_bytes()[:500])
assert load_checkpoint(work_dir(e)) is None
stop()
kept = torch.load(path, weights_only=True); kept["made_with"]["code"] = "older"; torch.save(kept, path)
r = run(e)
assert r["resumed"] == 0 and r["status"] == "done"
"""
    done = _python(code, tmp_path, WAVESCAT_CHECKPOINT_SECONDS="0")
    assert done.returncode == 0, done.stderr


def test_out_of_memory_says_what_to_lower(tmp_path):
    code = """
import torch
from wavescat.runs.experiment import experiment
from wavescat.training.run import run
from wavescat.training.trainer import Training
def step(*a, **kw):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
Training.step = step
try:
    run(experiment(width=2, per_class=2, epochs=1))
except torch.OutOfMemoryError as error:
    print(error)
"""
    done = _python(code, tmp_path)
    assert (
        "batch_size=128" in done.stdout
        and "raise accumulate to 2" in done.stdout
        and done.stdout.count("\n") == 1
    ), done.stderr


def _full_disk(tmp_path):
    "A prefix for commands that see a file system of 1 MB at tmp_path / disk."
    (tmp_path / "disk").mkdir()
    for prefix in ([], ["unshare", "-rm"]):
        trial = [
            *prefix,
            "sh",
            "-c",
            f"mount -t tmpfs -o size=1m none {tmp_path / 'disk'} && echo mounted",
        ]
        try:
            done = subprocess.run(trial, capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if "mounted" in done.stdout:
            if not prefix:
                subprocess.run(["umount", tmp_path / "disk"])
            return prefix
    pytest.skip("no file system of its own may be mounted here")


def test_a_full_disk_loses_nothing(tmp_path):
    """What was stored stays as it was, the run that can't be stored fails in one line and leaves
    no half of itself, and there is room again it is computed."""
    prefix, disk = _full_disk(tmp_path), tmp_path / "disk"
    train = (
        f"{sys.executable} -c 'from wavescat.apps.cli import main; main()' train "
        + " ".join(TINY)
        + " -p epochs=1"
    )
    script = f"""
mount -t tmpfs -o size=2m none {disk} || exit 9
export WAVESCAT_RUNS={disk}
{train} || exit 8
(cd {disk} && find . -type f | sort | xargs sha256sum) > {tmp_path}/before
head -c 4000000 /dev/zero > {disk}/filler 2> /dev/null
WAVESCAT_CHECKPOINT_SECONDS=0 {train} -p seed=1 -p width=4; echo "exit $?"
rm {disk}/filler
(cd {disk} && find . -type f -not -path '*.work*' | sort | xargs sha256sum) > {tmp_path}/after
ls -A {disk}
echo again
{train} -p seed=1 -p width=4 || exit 7
umount {disk}
"""
    done = subprocess.run(
        [*prefix, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
        and "exit 1" in done.stdout
        or "exit 2" in done.stdout
    ), done.stdout
    assert "No space left" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_poisoned_weights(tmp_path):
    """A pickle that would write a file is refused, as weights to start from and as a stored
    model; nothing is written."""

    class Poison:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name in ("w.pt", "w.pth", "w.bin"):
        (tmp_path / name).write_bytes(pickle.dumps({"w": Poison()}, protocol=2))
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Poison()))
    for name in ("w.pt", "w.pth", "w.bin", "w.safetensors"):
        done = wavescat("train", *TINY, "-p", f"weights={tmp_path / name}", store=tmp_path / "s")
        assert (
            done.returncode == 2
            and "nothing in it was run" in done.stderr
            and done.stderr.count("\n") == 1
        ), done.stderr
    done = wavescat("train", *TINY, "-p", "weights=nowhere.safetensors", store=tmp_path / "s")
    assert done.returncode == 2 and "no weights at nowhere.safetensors" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_starting_from_saved_weights(trained, tmp_path):
    store, (first, *_) = trained
    done = wavescat("train", *TINY, "-p", "epochs=0", "-p", f"weights={first[:8]}", store=store)
    accuracy = json.loads((store / first / "result.json").read_text())["test_accuracy"]
    assert done.returncode == 0 and f"{accuracy:,.6g}" in done.stdout, done.stderr
    done = wavescat(
        "train",
        *TINY,
        "-p",
        "width=4",
        "-p",
        f"weights={store / first / 'weights.safetensors'}",
        store=tmp_path,
    )
    assert (
        done.returncode == 2
        and "don't fit scatresnet18" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_a_new_head_on_saved_weights(trained, tmp_path):
    from safetensors.torch import load_file

    store, (first, *_) = trained
    done = wavescat(
        "train",
        *TINY,
        "-p",
        "epochs=0",
        "-p",
        "seed=5",
        "-p",
        f"weights={store / first / 'weights.safetensors'}",
        "-p",
        "new_head=true",
        store=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.iterdir()
    before, after = (load_file(d / "weights.safetensors") for d in (store / first, found))
    changed = {k for k in before if not before[k].equal(after[k])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_is_the_same_run(tmp_path):
    small = [*TINY, "-p", "epochs=2", "-p", "lr=0.001"]
    for store, more in ((tmp_path / "eager", []), (tmp_path / "compiled", ["-p", "compile=true"])):
        done = wavescat("train", *small, *more, store=store)
        assert done.returncode == 0, done.stderr
    curves = [
        [
            h["train_loss"]
            for h in json.loads(next((tmp_path / name).glob("*/history.json")).read_text())
        ]
        for name in ("eager", "compiled")
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_predict(trained, tmp_path):
    """Training images of the embedded set, written as files, get the classes that the stored
    model gives them; the data set isn't asked for."""
    import numpy as np
    from PIL import Image

    from wavescat.data.load import load

    store, (run, *_) = trained
    data = load("textures")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for p, image in zip(paths, data.train[::200]):
        Image.fromarray(image[0]).save(p)
    Image.new("RGB", (200, 90), "grey").save(tmp_path / "wide.jpg")
    done = wavescat("predict", run[:7], *paths, tmp_path / "wide.jpg", "--top", "2", store=store)
    assert (
        done.returncode == 0
        and len(done.stdout.splitlines()) == 4
        and all(line.count("%") == 2 for line in done.stdout.splitlines())
    ), done.stderr
    (tmp_path / "no.png").write_text("no image")
    for args, says in (
        ((run, tmp_path / "no.png"), "no.png"),
        ((run, tmp_path / "none.png"), "no image could be read"),
        (("zzz", paths[0]), "no run begins with 'zzz'"),
    ):
        done = wavescat("predict", *args, store=store)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )
    assert np.isfinite(data.mean).all()
    for suffix, head, *options in (
        (".png", b"\x89PNG"),
        (".svg", b"<?xml", "--target", "brick"),
        (".pdf", b"%PDF", "--layer", "stem"),
    ):
        done = wavescat(
            "predict", run, *paths, "--gradcam", tmp_path / f"why{suffix}", *options, store=store
        )
        assert done.returncode == 0 and (tmp_path / f"why{suffix}").read_bytes().startswith(head), (
            done.stderr
        )
    for args, says in (
        (("--gradcam", tmp_path / "why.gif"), "did you mean"),
        (("--gradcam", tmp_path / "no" / "why.png"), "doesn't exist"),
        (
            ("--gradcam", tmp_path / "w.png", "--layer", "stages.9"),
            "unknown layer 'stages.9'; did you mean stages",
        ),
        (("--gradcam", tmp_path / "w.png", "--layer", "head"), "gives no maps"),
        (("--layer", "stages.3.1"), "--layer goes with --gradcam"),
        (
            ("--gradcam", tmp_path / "w.png", "--target", "bricks"),
            "unknown class 'bricks'; did you mean brick",
        ),
    ):
        done = wavescat("predict", run, paths[0], *args, store=store)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )
    assert not (tmp_path / "w.png").exists()


def test_runs(trained):
    store, (one, two, diverged, failed) = trained
    listed = wavescat("runs list", store=store).stdout
    assert (
        all(i in listed for i in (one, two, diverged, failed))
        and "failed" in listed
        and "diverged" in listed
    )
    assert wavescat("runs list -w split=stratified -w seed=1", store=store).stdout.count("\n") == 2
    assert wavescat("runs list -w seed=1", store=store).stdout.count("\n") == 2
    assert (
        failed in (only := wavescat("runs list -w status=failed", store=store).stdout)
        and one not in only
    )
    assert wavescat("runs list --csv", store=store).stdout.startswith("identity,status")
    shown = wavescat("runs show", failed[:6], store=store).stdout
    assert "Traceback" in shown and "the roof fell in" in shown
    compared = wavescat("runs compare", one, two, store=store).stdout
    assert "seed" in compared and "test_accuracy" in compared and "width" not in compared
    logged = wavescat("runs log", store=store, env={"MLFLOW_TRACKING_URI": ""})
    there = wavescat("runs list --csv", store=store).stdout.count("\n") - 1
    assert (
        logged.returncode == 0
        and there >= 4
        and logged.stdout.startswith(f"{there} runs logged to sqlite")
        and "doesn't take" not in logged.stderr
    ), logged.stdout + logged.stderr  # the diverged and the failed one too
    for args, says in (
        (("list", "-w", "sed=1"), "did you mean seed"),
        (("show", "0"), "no run begins with"),
        (("rm",), "expected runs, or conditions"),
    ):
        done = wavescat("runs", *args, store=store)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )


def test_rm(trained, tmp_path):
    import shutil

    store = tmp_path / "s"
    shutil.copytree(trained[0], store)
    one, _, _, failed = trained[1]
    there = len(list(store.iterdir()))
    assert (
        wavescat("runs rm", one, store=store, input="n\n").returncode == 0
        and (store / one).is_dir()
    )
    assert "1 removed" in wavescat("runs rm -w status=failed --yes", store=store).stdout
    assert "1 removed" in wavescat("runs rm", one, "-y", store=store).stdout
    assert (
        not (store / one).exists()
        and not (store / f"{failed}.work").exists()
        and len(list(store.iterdir())) == there - 2
    )


def test_every_published_protocol_can_be_said():
    "As settings that an experiment knows and that go together; numbers of PROTOCOLS in the papers."
    from wavescat.runs.experiment import experiment
    from wavescat.studies.published import protocol, protocols
    from wavescat.training.schedules import learning_rate
    from wavescat.training.settings import check_settings

    made = {name: experiment(**protocol(name)) for name in protocols()}
    for e in made.values():
        check_settings(e)
    assert {
        n: (e.epochs, e.batch_size, e.lr)
        for n, e in made.items()
        if n.startswith("parametric-ll-") and n[14:].isdigit()
    } == {
        "parametric-ll-100": (5000, 128, 0.06),
        "parametric-ll-500": (1000, 500, 0.13),
        "parametric-ll-1000": (500, 1000, 0.2),
    }
    assert [learning_rate(made["scattering-tiny"], k) for k in (0, 4, 14)] == pytest.approx(
        [0.1, 0.02, 0.0008]
    )
    assert [learning_rate(made["wytiny"], k) for k in (0, 7)] == pytest.approx([0.05, 0.5])
    done = wavescat("train --protocol wytinny", store="unused")
    assert done.returncode == 2 and "did you mean wytiny" in done.stderr


def test_weights_from_elsewhere(tmp_path):
    """torchvision's names become ours, and a run starts from them with a new head; another file,
    or none, is refused and nothing is written."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from wavescat.models.registry import build

    torch.manual_seed(0)
    own = build("resnet18-imagenet", (3, 224, 224), 1000).state_dict()

    def theirs(key):
        first, _, rest = key.partition(".")
        return (
            f"fc.{rest}"
            if first == "head"
            else f"{('conv1', 'bn1')[int(rest[0])]}.{rest[2:]}"
            if first == "stem"
            else f"layer{int(rest[0]) + 1}.{rest[2:].replace('shortcut', 'downsample')}"
        )

    torch.save(
        {
            theirs(k): torch.nn.Parameter(v) if "weight" in k else v
            for k, v in own.items()
            if not k.endswith("num_batches_tracked")
        },
        tmp_path / "theirs.pth",
    )  # as their files are
    out = tmp_path / "ours.safetensors"
    assert (
        wavescat(
            "weights resnet18-imagenet",
            out,
            "--from",
            tmp_path / "theirs.pth",
            store=tmp_path / "s",
        ).returncode
        == 0
    )
    written = load_file(out)
    assert written.keys() == own.keys() and all(torch.equal(written[k], v) for k, v in own.items())
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (64, 64), tuple(c + 5 * i for c in colour)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    done = wavescat(
        "train",
        "-p",
        f"dataset={tmp_path / 'images'}",
        "-p",
        "size=64",
        "-p",
        "model=resnet18-imagenet",
        "-p",
        f"weights={out}",
        "-p",
        "new_head=true",
        "-p",
        "epochs=0",
        store=tmp_path / "s",
    )
    assert done.returncode == 0, done.stderr
    trained = load_file(next((tmp_path / "s").glob("*/weights.safetensors")))
    assert all(
        torch.equal(trained[k], v) for k, v in own.items() if not k.startswith("head.")
    ) and trained["head.weight"].shape == (2, 512)
    other = tmp_path / "other.safetensors"
    for args, message in (
        (("resnet18", other), "unknown pre-trained model"),
        (("resnet50", other, "--from", tmp_path / "theirs.pth"), "doesn't hold resnet50"),
        (("resnet50", other, "--from", tmp_path / "none.pth"), "no weights at"),
        (("resnet50", tmp_path / "other.pt"), ".safetensors"),
        *(
            []
            if importlib.util.find_spec("torchvision")
            else [(("resnet50", other), "torchvision isn't installed")]
        ),
    ):
        done = wavescat("weights", *args, store=tmp_path / "s")
        assert (
            done.returncode == 2
            and message in done.stderr
            and len(done.stderr.strip().splitlines()) == 1
            and not other.exists()
        ), done.stderr


@pytest.mark.parametrize(
    "options",
    [
        dict(init="random"),
        dict(),
        dict(init="random", learn="canonical"),
        dict(init="random", learn="equivariant"),
        dict(learn="pixelwise"),
    ],
)
def test_a_stored_model_comes_back_as_it_was(options, tmp_path, monkeypatch):
    """Also where its filters were drawn and stayed fixed, which its file of weights doesn't have;
    and chance goes on as if it hadn't been loaded."""
    import numpy as np
    import torch

    from wavescat.runs.experiment import experiment
    from wavescat.runs.paths import run_dir
    from wavescat.studies.inference import tested
    from wavescat.training.run import run

    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    e = experiment(
        model="scattering-linear",
        L=4,
        per_class=4,
        epochs=8,
        batch_size=16,
        lr=0.05,
        seed=3,
        **options,
    )
    result = run(e, device=torch.device("cpu"))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    found = tested(e)
    assert torch.rand(1) == expected
    called = found.probabilities.argmax(1)
    assert (
        (called == np.load(run_dir(e) / "predictions.npy")).all()
        and len(set(called)) > 3
        and 100 * (called == found.labels).mean() == pytest.approx(result["test_accuracy"])
    )


def test_random_filters_that_stayed_fixed_are_not_drawn_anew(tmp_path, monkeypatch):
    """A run that starts from one with such filters has its seed, or isn't begun; a file of
    weights doesn't say which that is."""
    import torch

    from wavescat.runs.experiment import experiment
    from wavescat.runs.paths import run_dir
    from wavescat.training.checks import check
    from wavescat.training.run import run

    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    options = dict(
        model="scattering-linear", L=4, per_class=4, batch_size=16, init="random", augment="none"
    )
    first = experiment(**options, epochs=12, lr=0.05, seed=3)
    result = run(first, device=torch.device("cpu"))
    again = run(
        experiment(**options, epochs=0, seed=3, weights=first.identity), device=torch.device("cpu")
    )
    assert again["test_accuracy"] == result["test_accuracy"] > 20
    with pytest.raises(ValueError, match="set seed=3"):
        check(experiment(**options, epochs=0, weights=first.identity))
    with pytest.raises(ValueError, match="start from the run that it comes from"):
        check(
            experiment(
                **options, epochs=0, seed=3, weights=str(next(run_dir(first).glob("weights.*")))
            )
        )
    check(
        experiment(
            **{**options, "learn": "canonical"},
            epochs=0,
            weights=run(
                experiment(**{**options, "learn": "canonical"}, epochs=1),
                device=torch.device("cpu"),
            )["identity"],
        )
    )
