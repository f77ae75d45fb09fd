"""The studies and commands of Tiny ImageNet.

Pairs of networks with and without scattering, the error analysis, and every option of the published
command line."""

import json
import re

import numpy as np
import pytest
from conftest import wavescat


def _report(smoke, study):
    "The stored results of a study's smoke preset."
    return json.loads((smoke[0] / study / "smoke.json").read_text())


def test_fronts_are_compared_seed_by_seed(smoke):
    """tiny_imagenet: the same images in every run, the same network but for its front.

    The differences that the page shows are computed by hand."""
    report = _report(smoke, "tiny_imagenet")
    runs = {}
    for r in report["runs"]:
        runs.setdefault(r["experiment"]["model"], {})[r["experiment"]["seed"]] = r
    assert set(runs) == {"scattering-resnet14", "s2d-resnet14", "resnet14"} and all(
        set(by) == {0, 1} for by in runs.values()
    )
    assert len({r["split"] for by in runs.values() for r in by.values()}) == 1
    assert (
        runs["scattering-resnet14"][0]["parameters"] - runs["s2d-resnet14"][0]["parameters"]
        == (17 - 16) * 9 * 2
    )  # grey: 1 + 2·8 maps against 16, 3×3 to 2 channels
    shown = {e["model"]: e["difference"] for e in report["effects"]}
    differences = {
        other: np.mean(
            [
                runs["scattering-resnet14"][s]["test_accuracy"] - runs[other][s]["test_accuracy"]
                for s in (0, 1)
            ]
        )
        for other in ("s2d-resnet14", "resnet14")
    }
    assert shown == {
        "scattering, ResNet-14, order=1 (against space-to-depth, ResNet-14)": pytest.approx(
            differences["s2d-resnet14"]
        )
    }  # plain pixels cost more: no answer to what scattering brings
    text = (smoke[0] / "tiny_imagenet" / "smoke.html").read_text()
    for other, front in (("s2d-resnet14", "space-to-depth"), ("resnet14", "plain pixels")):
        assert re.search(
            rf"<td>{front}</td>\s*<td>2</td>\s*<td>{re.escape(f'{differences[other]:+.2f}')}</td>",
            text,
        ), (front, differences[other])
    flop = {row["model"]: float(row["Mflop"].replace(",", "")) for row in report["table"]}
    assert (
        flop["ResNet-14"] > 10 * flop["space-to-depth, ResNet-14"]
    )  # the same network at sixteen times the places


def test_wytiny_and_alexnet_pages(smoke):
    report = _report(smoke, "wytiny")
    assert {(r["experiment"]["norm"], r["experiment"]["ghost"]) for r in report["runs"]} == {
        ("batch", 32),
        ("ghost-batch", 8),
    } and {r["experiment"]["schedule"] for r in report["runs"]} == {"piecewise"}
    text = (smoke[0] / "wytiny" / "smoke.html").read_text()
    assert all(
        t in text
        for t in (
            "Grad-CAM of WyTiny",
            "the errors it was surest of",
            "what each class was called",
            "what the augmentation makes of it",
        )
    )
    report = _report(smoke, "linear_and_alexnet")
    assert {(r["experiment"]["model"], r["experiment"]["loss"]) for r in report["runs"]} == {
        ("linear", "hinge"),
        ("alexnet", "cross-entropy"),
    }
    assert (
        "misclassified most and least"
        in (smoke[0] / "linear_and_alexnet" / "smoke.html").read_text()
    )


def test_every_published_option(tmp_path, monkeypatch):
    """Every option of the published command line has an effect.

    Data set and folder, classes, loss, margin, regularisation, optimiser, its rate and momentum,
    batches, epochs, seed, top-k, augmentation, CPU, log, error analysis, results under a prefix. Then
    the saved model is loaded and only evaluated."""
    from typer.testing import CliRunner

    from wavescat.apps.cli import app

    for name in ("WAVESCAT_RUNS", "WAVESCAT_DATA"):
        monkeypatch.setenv(
            name, str(tmp_path / name)
        )  # put back afterwards what the commands of this process set
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    options = dict(
        dataset="textures",
        classes="0-5",
        per_class=8,
        model="linear",
        loss="squared-hinge",
        margin=20,
        weight_decay=1e-3,
        optimizer="adam",
        lr=1e-3,
        batch_size=16,
        test_batch_size=7,
        epochs=3,
        seed=3,
        top_k=2,
        augment="flip-crop",
        schedule="constant",
    )

    def train(*more, **changed):
        return wavescat(
            "train",
            *(a for k, v in {**options, **changed}.items() for a in ("-p", f"{k}={v}")),
            *more,
            store=tmp_path / "unused",
        )

    done = train(
        "--data",
        tmp_path / "data",
        "--runs",
        tmp_path / "runs",
        "--cpu",
        "--threads",
        "1",
        "--log-every",
        "2",
        "--err",
        tmp_path / "err.png",
        "--copy",
        f"{tmp_path}/out/svm-",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "epoch 2 of 3: lr 0.001, train_loss" in done.stdout
        and "epoch 1 of 3" not in done.stdout
        and "most misclassified: " in done.stdout
        and "least misclassified: " in done.stdout
    )
    assert (tmp_path / "err.png").read_bytes()[:4] == b"\x89PNG" and not (
        tmp_path / "unused"
    ).exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"svm-{n}"
        for n in (
            "config.json",
            "history.json",
            "images.json",
            "predictions.npy",
            "result.json",
            "weights.safetensors",
        )
    ]
    result = json.loads((tmp_path / "out" / "svm-result.json").read_text())
    assert (
        result["parameters"] == 6 * (32 * 32 + 1)
        and result["device"].startswith("cpu")
        and {k: result["experiment"][k] for k in options} == options
    )
    for lr in (1e-4, 1e-2):  # the optimiser obeys the rate that it is given
        other = train("--runs", tmp_path / "runs", "--copy", f"{tmp_path}/out/other-", lr=lr)
        assert (
            other.returncode == 0
            and json.loads((tmp_path / "out" / "other-result.json").read_text())["train_loss"]
            != result["train_loss"]
        )
    runner, losses = CliRunner(), {}
    for changed in (
        dict(margin=1),
        dict(weight_decay=1.0),
        dict(batch_size=8),
        dict(augment="none"),
        dict(seed=4),
        dict(optimizer="sgd", momentum=0),
        dict(optimizer="sgd", momentum=0.5),
    ):
        done = runner.invoke(
            app,
            [
                "train",
                "--runs",
                str(tmp_path / "runs"),
                "--copy",
                f"{tmp_path}/out/effect-",
                *(a for k, v in {**options, **changed}.items() for a in ("-p", f"{k}={v}")),
            ],
        )
        assert done.exit_code == 0, done.output
        losses[str(changed)] = json.loads((tmp_path / "out" / "effect-result.json").read_text())[
            "train_loss"
        ]
    assert len({*losses.values(), result["train_loss"]}) == 8, losses
    done = runner.invoke(
        app,
        [
            "train",
            "--runs",
            str(tmp_path / "runs"),
            "--copy",
            f"{tmp_path}/out/all-",
            *(a for k, v in {**options, "top_k": 6}.items() for a in ("-p", f"{k}={v}")),
        ],
    )
    assert (
        done.exit_code == 0
        and result["test_accuracy"]
        <= result["test_top_k"]
        < 100
        == json.loads((tmp_path / "out" / "all-result.json").read_text())["test_top_k"]
    ), "one of all six classes is always right"
    again = train(
        "--runs",
        tmp_path / "runs",
        "--copy",
        f"{tmp_path}/out/again-",
        epochs=0,
        weights=tmp_path / "out" / "svm-weights.safetensors",
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "again-predictions.npy").read_bytes() == (
        tmp_path / "out" / "svm-predictions.npy"
    ).read_bytes()
    assert (
        json.loads((tmp_path / "out" / "again-result.json").read_text())["test_accuracy"]
        == result["test_accuracy"]
    )


def test_epochs_are_printed_as_they_end(tmp_path):
    """The lines come through a pipe before the run is done; those of a stored run are printed too."""
    import signal
    import subprocess
    import sys

    command = [
        sys.executable,
        "-m",
        "wavescat.apps.cli",
        "train",
        "--runs",
        str(tmp_path / "runs"),
        "-p",
        "model=linear",
        "-p",
        "per_class=2",
        "-p",
        "epochs=100000",
        "--log-every",
        "3",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        try:
            lines = [run.stdout.readline() for _ in range(2)]
            assert run.poll() is None
        finally:
            run.send_signal(signal.SIGKILL)
    assert [line.split(",")[0].rsplit(" ", 1)[0] for line in lines] == [
        f"epoch {n} of 100000: lr" for n in (3, 6)
    ], lines
    done = wavescat(
        "train -p model=linear -p per_class=2 -p epochs=4 --log-every 3", store=tmp_path / "stored"
    )
    assert done.returncode == 0 and len(re.findall(r"^epoch \d+ of 4: lr", done.stdout, re.M)) == 1
    again = wavescat(
        "train -p model=linear -p per_class=2 -p epochs=4 --log-every 2", store=tmp_path / "stored"
    )  # it is stored: nothing is computed, its epochs are still printed
    assert re.findall(r"^epoch (\d+) of 4: lr", again.stdout, re.M) == ["2", "4"]


def test_images_at_a_time_in_testing_change_nothing(tmp_path, monkeypatch):
    """However many images are scored at once, the predictions stay the same.

    Batch norm goes by its stored statistics."""
    from wavescat.runs.experiment import experiment
    from wavescat.training.inference import test_predictions
    from wavescat.training.run import run

    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    small = dict(
        model="scatresnet18",
        width=2,
        L=2,
        per_class=2,
        epochs=1,
        batch_size=8,
        augment="none",
        validation=16,
    )
    one, other = (experiment(**small, test_batch_size=n) for n in (3, None))
    a, b = run(one), run(other)
    assert (
        (test_predictions(one) == test_predictions(other)).mean() > 0.99
        and a["val_accuracy"] == b["val_accuracy"]
        and abs(a["last_test_loss"] - b["last_test_loss"]) < 1e-4
    )


@pytest.mark.parametrize(
    "more, message",
    [
        (("--err", "nowhere/e.png"), "the folder nowhere doesn't exist"),
        (("--err", "e.bmp"), "unknown format of a figure '.bmp'"),
        (("--copy", "nowhere/x"), "the folder of --copy nowhere/x doesn't exist"),
        (("--data", "nowhere"), "--data nowhere isn't a folder"),
        (("-p", "norm=group"), "linear has no norm"),
        (("-p", "model=wytiny", "-p", "ghost=8"), "ghost goes with norm=ghost-batch"),
        (("-p", "model=alexnet-imagenet"), "alexnet-imagenet can't take images as small as 32×32"),
        (("-p", "model=densenet", "-p", "width=3"), "width must be even"),
        (("--err", "e.png", "-p", "dataset=mixtures", "-p", "loss=mse"), "mixtures has targets"),
    ],
)
def test_what_training_refuses(tmp_path, more, message):
    done = wavescat("train -p model=linear -p epochs=0", *more, store=tmp_path / "runs")
    assert (
        done.returncode == 2
        and message in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
        and not (tmp_path / "runs").exists()
    ), done.stderr


def test_alexnet_is_fine_tuned(tmp_path):
    """Weights under torchvision's names become a file of ours, which a run starts from.

    At 224 pixels; without a file or torchvision a line says what to do."""
    import torch
    from safetensors.torch import save_file

    from wavescat.models.alexnet import TORCHVISION_ALEXNET
    from wavescat.models.registry import build

    torch.manual_seed(0)
    theirs = {
        f"{t}.{k[len(o) + 1 :]}": v
        for t, o in TORCHVISION_ALEXNET.items()
        for k, v in build("alexnet-imagenet", (3, 224, 224), 1000).state_dict().items()
        if k.startswith(f"{o}.")
    }
    save_file(theirs, tmp_path / "alexnet.safetensors")
    done = wavescat(
        "weights alexnet-imagenet",
        tmp_path / "ours.safetensors",
        "--from",
        tmp_path / "alexnet.safetensors",
        store=tmp_path / "runs",
    )
    assert done.returncode == 0 and "61,100,840 numbers" in done.stdout, done.stderr
    rgb = tmp_path / "images"
    from PIL import Image

    for k in "ab":
        (rgb / k).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)).save(
                rgb / k / f"{i}.png"
            )
    done = wavescat(
        "train",
        "-p",
        f"dataset={rgb}",
        "-p",
        "size=224",
        "-p",
        "model=alexnet-imagenet",
        "-p",
        f"weights={tmp_path / 'ours.safetensors'}",
        "-p",
        "new_head=true",
        "-p",
        "epochs=1",
        "-p",
        "lr=1e-3",
        "-p",
        "augment=none",
        "--copy",
        f"{tmp_path}/tuned-",
        store=tmp_path / "runs",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "tuned-result.json").read_text())
    assert result["weights_from"] and result["parameters"] == 61_100_840 - 998 * 4097
    done = wavescat(
        "weights alexnet-imagenet", tmp_path / "none.safetensors", store=tmp_path / "runs"
    )
    assert (
        done.returncode == 2
        and "alexnet-owt-7be5be79.pth" in done.stderr
        and "pip install torchvision" in done.stderr
        and not (tmp_path / "none.safetensors").exists()
    )


@pytest.mark.parametrize(
    "study, parameters, message",
    [
        ("tiny_imagenet", ["per_class=10,20"], "per_class must be one whole number or all"),
        ("tiny_imagenet", ["models=resnet14"], "list at least two"),
        ("wytiny", ["epochs=10"], "points end at epoch 35, and there are 10 epochs"),
        ("wytiny", ["points=abc:def"], "points must be epoch:rate"),
        ("wytiny", ["shown=0"], "shown must be at least 1"),
        ("tiny_imagenet", ["epochs=8"], "points has an epoch 8, and there are 8 epochs"),
        ("tiny_imagenet", ["points=2.5/15.5"], "points has an epoch 15.5"),
        ("tiny_imagenet", ["timed_steps=0"], "must be at least 1"),
        ("wytiny", ["models=wytiny, wytiny top_k:3"], "top_k is the study's"),
        ("linear_and_alexnet", ["weights=none.safetensors"], "no weights at none.safetensors"),
        ("linear_and_alexnet", ["weights=README.md"], "not textures"),
    ],
)
def test_what_the_studies_refuse(study, parameters, message, tmp_path):
    from wavescat.studies.plans import experiments_of
    from wavescat.studies.presets import resolve

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        experiments_of(study, resolve(study, "quick", dict(p.split("=", 1) for p in parameters)))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            dict(schedule="piecewise", points="0:.1/3:.5/9:.1", lr=0.1),
            "highest is 0.5, and lr=0.1 would change nothing: set lr=0.5",
        ),
        (dict(schedule="piecewise", points="0:0/9:0"), "one of them must be above 0"),
        (dict(schedule="piecewise", points="0:nan/9:.1"), "points must be finite"),
        (dict(schedule="steps", points="inf"), "points must be finite"),
        (dict(top_k=9), "top_k must be at most the number of classes, 8, got 9"),
        (
            dict(model="wytiny", norm="ghost-batch", width=2, batch_size=32),
            "needs at least two ghost batches, 64 images at once, and there are 16",
        ),
        (
            dict(model="wytiny", norm="ghost-batch", width=2, ghost=8, accumulate=2, batch_size=16),
            "lower ghost, or raise batch_size",
        ),
    ],
)
def test_settings_that_would_change_nothing(settings, message):
    "A learning rate that points replace, ghost batches as large as the batch and the like are refused."
    from wavescat.runs.experiment import experiment
    from wavescat.training.checks import check

    with pytest.raises(ValueError, match=re.escape(message)):
        check(experiment(**{**dict(model="linear", per_class=2, epochs=9), **settings}))
    ghosts = dict(model="wytiny", norm="ghost-batch", width=2, ghost=8, batch_size=16)
    piecewise = dict(schedule="piecewise", points="0:.1/3:.5/9:.1", lr=0.5, epochs=9)
    check(experiment(**ghosts, **piecewise, per_class=2))


def test_parameters_of_every_backbone():
    """At 64×64 and 200 classes.

    On plain pixels: torchvision's counts for 1,000 classes with the head exchanged (ResNet-18's stem
    is 3×3 in place of 7×7). Behind a front: the same but for what the first convolution takes, 51 or
    48 maps."""
    import torch

    from wavescat.models.inspection import parameter_count
    from wavescat.models.registry import build

    def count(name, **options):
        return parameter_count(build(name, (3, 64, 64), 200, **options))

    plain = {
        "resnet14": 4_308_232,
        "resnet18": 11_689_512 - 800 * 513 - 3 * 64 * (49 - 9),
        "resnet50": 25_557_032 - 800 * 2049,
        "densenet": 7_978_856 - 800 * 1025,
        "inception-resnet": 21_321_928,
        "alexnet": 57_812_296,
    }
    s2d = {
        "resnet14": 4_334_152,
        "resnet18": 11_297_352,
        "resnet50": 23_936_072,
        "densenet": 7_177_096,
        "inception-resnet": 20_817_480,
        "alexnet": 57_827_720,
    }
    with torch.device("meta"):
        assert {name: count(name) for name in plain} == plain and {
            name: count(f"s2d-{name}") for name in s2d
        } == s2d
        for name, own in s2d.items():
            assert count(f"scattering-{name}", order=1) - own == (51 - 48) * 9 * (
                256 if name == "inception-resnet" else 64
            )
        assert [
            count("wytiny", convolution=c) for c in ("plain", "depthwise", "depthwise-separable")
        ] == [14_085_000, 154_440, 1_701_283]


def test_mnist_by_command(tmp_path, monkeypatch):
    "The linear machine on MNIST's four files, trained, then loaded and evaluated."
    import matplotlib.pyplot as plt
    from layouts import mnist_files
    from typer.testing import CliRunner

    from wavescat.apps.cli import app
    from wavescat.data.load import load
    from wavescat.training.precision import precision_here

    for name in ("WAVESCAT_RUNS", "WAVESCAT_DATA", "WAVESCAT_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    load.cache_clear()
    folder, _, packed = mnist_files(monkeypatch)
    for name, content in packed.items():
        (folder / name).write_bytes(content)

    def train(*more):
        done = CliRunner().invoke(
            app,
            [
                "train",
                "--protocol",
                "svm-tiny",
                "-p",
                "dataset=mnist",
                *more,
                "--copy",
                str(tmp_path / "out-"),
            ],
        )
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "out-result.json").read_text())

    trained = train("-p", "epochs=3", "--err", str(tmp_path / "err.png"))
    assert (
        trained["parameters"] == 10 * (28 * 28 + 1)
        and trained["experiment"]["loss"] == "hinge"
        and (tmp_path / "err.png").is_file()
    )
    assert not plt.get_fignums()  # what was drawn for the file isn't held
    (tmp_path / "out-weights.safetensors").rename(tmp_path / "svm.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        train("-p", "epochs=0", "-p", "weights=~/svm.safetensors")["test_accuracy"]
        == trained["test_accuracy"]
    )
    assert train("-p", "epochs=1", "-p", "precision=auto")["experiment"].get(
        "precision", "float32"
    ) == precision_here("auto")
    load.cache_clear()


def test_the_part_of_a_set_is_that_of_the_whole(tmp_path, monkeypatch):
    """A page says how many images a run trained on, of the whole data set.

    Not of those that happen to be on this machine."""
    from layouts import tiny_imagenet

    from wavescat.data.load import load
    from wavescat.studies.page import trained_on

    monkeypatch.setenv("WAVESCAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WAVESCAT_DATA", str(tmp_path))
    load.cache_clear()
    tiny_imagenet(tmp_path / "tiny-imagenet-200", 4)
    whole = load("tiny-imagenet")
    assert trained_on(whole, "tiny-imagenet", 6) == "6 of 100,000 training images"
    assert (
        trained_on(load("tiny-imagenet", None, "0-1"), "tiny-imagenet", 6)
        == f"6 of {100_000 // len(whole.classes) * 2:,} training images"
    )
    assert (
        trained_on(load("textures"), "textures", 800) == "all 800 training images"
        and trained_on(load("textures", None, "0-3"), "textures", 40) == "40 of 400 training images"
    )
    load.cache_clear()


def test_classes_with_the_same_error_rate():
    "A reader of five classes out of eighty that are always wrong learns that there are more."
    from wavescat.analysis.error_analysis import class_errors, ties

    labels, classes = np.repeat(np.arange(20), 4), [f"{i}" for i in range(20)]
    assert ties(class_errors(np.where(labels < 12, 19, labels), labels, classes)) == (
        "12 classes share an error rate of 100 %, with room for 5 of them among the most "
        "misclassified; 8 classes share an error rate of 0 %, with room for 5 of them among the "
        "least misclassified: "
        "which, the order of the classes decides, not the model."
    )
    of = [
        {"class": c, "images": 20, "errors": i, "error rate, %": 5.0 * i}
        for i, c in enumerate(classes)
    ][::-1]
    assert ties(of) == "" and ties(of[:3]) == ""


def test_float16_stopped_and_continued(tmp_path, monkeypatch):
    """Float16 with its scaled loss learns.

    From a checkpoint it ends where it would have ended, to the last bit."""
    from wavescat.runs.experiment import experiment
    from wavescat.runs.lock import Stopped
    from wavescat.runs.paths import run_dir
    from wavescat.training.run import run

    network = dict(model="wytiny", width=2, precision="float16", augment="none")
    e, files = experiment(**network, per_class=8, epochs=6, batch_size=16, lr=0.05), {}
    for how in ("whole", "stopped"):
        monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / how))
        monkeypatch.setenv("WAVESCAT_CHECKPOINT_SECONDS", "0")
        if how == "stopped":
            at = []
            with pytest.raises(Stopped):
                run(e, lambda done, of, history: at.append(done), stop=lambda: 3 in at)
            assert at and max(at) == 3
        result = run(e)
        files[how] = [
            (run_dir(e) / name).read_bytes()
            for name in ("weights.safetensors", "history.json", "predictions.npy")
        ]
        history = json.loads((run_dir(e) / "history.json").read_text())
        assert (
            result["status"] == "done"
            and history[-1]["train_loss"] < history[0]["train_loss"]
            and result["precision"] == "float16"
        )
    assert files["whole"] == files["stopped"]


def test_networks_learn_by_deterministic_operations():
    """No model's backward pass needs an operation that torch refuses where runs are deterministic.

    On a GPU they are, unless asked otherwise."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from wavescat.models.registry import MODELS, build, model_options

    refused = (
        "adaptive_avg_pool",
        "adaptive_max_pool",
        "fractional_max_pool",
        "max_unpool",
        "reflection_pad",
        "replication_pad",
        "upsample_bicubic2d_backward",
        "upsample_linear",
        "upsample_trilinear",
        "nll_loss2d",
        "histc",
        "bincount",
        "median",
        "max_pool3d",
        "avg_pool3d",
        "grid_sampler_2d_backward",
        "cumsum",
    )

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op, kinds, args=(), kwargs=None):
            operations.add(op.name())
            return op(*args, **(kwargs or {}))

    for name in MODELS:
        if "@" in name:
            continue
        operations, side = (
            set(),
            64 if "imagenet" in name or name in ("resnet50", "densenet") else 32,
        )
        model = build(
            name,
            (3, side, side),
            10,
            **{k: v for k, v in dict(width=4, widen=1, L=2).items() if k in model_options(name)},
        )
        x = torch.randn(2, 3, side, side)
        with Recorder():
            model(x).sum().backward()
        assert operations and not [
            op
            for op in operations
            for bad in refused
            if bad in op and (op.endswith("backward") or "backward" in bad or "adaptive" in bad)
        ], (name, operations)


def test_other_images_of_the_same_name(tmp_path):
    "A data set that has grown is another one: what was computed on a part is computed again."
    from layouts import tiny_imagenet

    for root, each in (("part", 4), ("more", 6)):
        tiny_imagenet(tmp_path / root / "tiny-imagenet-200", each)
    results = []
    for root in ("part", "part", "more", "part"):
        done = wavescat(
            (
                "train -p dataset=tiny-imagenet -p model=linear -p augment=none -p epochs=1 "
                "-p lr=1e-4"
            ),
            "--data",
            tmp_path / root,
            "--copy",
            f"{tmp_path}/out-",
            store=tmp_path / "runs",
            env={"WAVESCAT_CACHE": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / "out-result.json").read_text()))
    assert (
        results[0] == results[1]
        and results[0]["data"] != results[2]["data"]
        and results[0]["train_loss"] != results[2]["train_loss"]
        and results[3]["data"] == results[0]["data"]
    )


def test_ghost_batches_may_be_shared_by_processes(monkeypatch):
    "What they compute then is compared in test_distributed."
    from wavescat.runs.experiment import experiment
    from wavescat.training.checks import check

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    check(experiment(model="wytiny", norm="ghost-batch", ghost=4, width=2, per_class=5))


def test_a_model_that_asks_for_numbers_is_no_misfit(tmp_path, monkeypatch):
    "The trial without numbers refuses what is too small, and nothing else."
    from wavescat.runs.experiment import experiment
    from wavescat.training.checks import check
    from wavescat.training.own_networks import own_model

    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.flatten(1)) * float(x.mean().item() < 9)\n"
        "def net(shape, num_classes):\n"
        "    return Net(shape[0] * shape[1] * shape[2], num_classes)\n"
    )
    check(experiment(model=own_model(f"{tmp_path / 'mine.py'}:net"), per_class=2))
