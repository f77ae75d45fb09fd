"""Every setting of an experiment changes its run, or is refused where it would change nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from wavescat.models.registry import MODELS, build, model_options
from wavescat.runs.experiment import Experiment, experiment
from wavescat.training import trainer
from wavescat.training.checks import check
from wavescat.training.distributed import World
from wavescat.training.loop import fit
from wavescat.training.randomness import algorithms
from wavescat.training.task import Task, build_model
from wavescat.training.tensors import save_tensors

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
LINEAR = dict(
    model="linear", per_class=4, epochs=3, batch_size=12, lr=0.01, augment="none", validation=8
)
SCATTERING = dict(
    model="scattering-linear",
    J=2,
    L=2,
    per_class=2,
    epochs=2,
    batch_size=8,
    lr=0.01,
    augment="flip-crop",
)
LEARNED = {**SCATTERING, "learn": "canonical"}
KEPT = {**LINEAR, "validation": 0}  # the last epoch's weights
RESNET = dict(dataset="FOLDER", model="resnet18", width=2, epochs=1, batch_size=8, lr=0.01)
WYTINY = {**RESNET, "model": "wytiny"}
MIXTURES = dict(
    dataset="mixtures", model="linear", loss="mse", epochs=1, batch_size=64, lr=1e-4, augment="none"
)
ONE_CYCLE = {**KEPT, "schedule": "one-cycle"}

# field → (settings in which it matters, one value, another, what differs)
EFFECTS = {
    "dataset": ({**LINEAR, "per_class": None, "loss": "mse"}, "textures", "mixtures", "data"),
    "size": ({**RESNET, "augment": "none"}, 16, 8, "inputs"),
    "classes": (LINEAR, None, "0-3", "predictions"),
    "split": (LINEAR, "stratified", "permuted", "weights"),
    "per_class": (LINEAR, 4, 5, "weights"),
    "validation": (LINEAR, 8, 16, "inputs"),
    "split_seed": (LINEAR, 42, 1, "weights"),
    "augment": (LINEAR, "none", "flip-crop", "weights"),
    "mix": (LINEAR, None, "mixup", "weights"),
    "mix_beta": ({**LINEAR, "mix": "cutmix"}, None, 5.0, "weights"),
    "model": (RESNET, "resnet18", "wytiny", "shapes"),
    "width": (RESNET, 2, 3, "shapes"),
    "widen": ({k: v for k, v in RESNET.items() if k != "width"} | {"model": "wrn"}, 1, 2, "shapes"),
    "convolution": (WYTINY, "plain", "depthwise", "shapes"),
    "norm": (WYTINY, "batch", "group", "shapes"),
    "ghost": ({**WYTINY, "norm": "ghost-batch", "batch_size": 16}, 4, 8, "weights"),
    "J": (SCATTERING, 2, 1, "shapes"),
    "L": (SCATTERING, 2, 3, "shapes"),
    "order": (SCATTERING, 2, 1, "shapes"),
    "learn": (SCATTERING, None, "canonical", "shapes"),
    "init": (SCATTERING, "tight-frame", "random", "weights"),
    "upsample": ({**RESNET, "model": "scatresnet18", "L": 2}, "deconv", "nearest", "shapes"),
    "slant": (SCATTERING, None, 0.5, "weights"),
    "engine": (LEARNED, "wavescat", "svd-gradient", "weights"),
    "weights": (LINEAR, None, "FILE", "weights"),
    "new_head": ({**RESNET, "weights": "FILE"}, False, True, "weights"),
    "loss": (LINEAR, "cross-entropy", "hinge", "weights"),
    "label_smoothing": (LINEAR, 0.0, 0.1, "weights"),
    "margin": ({**LINEAR, "loss": "hinge"}, 1.0, 2.0, "weights"),
    "target_scale": (MIXTURES, 1.0, 100.0, "weights"),
    "epochs": (LINEAR, 3, 4, "steps"),
    "batch_size": (LINEAR, 12, 8, "steps"),
    "test_batch_size": (LINEAR, None, 7, "inputs"),
    "drop_last": (LINEAR, False, True, "steps"),
    "accumulate": (LINEAR, 1, 3, "inputs"),
    "optimizer": (LINEAR, "sgd", "adam", "weights"),
    "lr": (LINEAR, 0.01, 0.02, "weights"),
    "momentum": (LINEAR, 0.9, 0.5, "weights"),
    "beta2": ({**LINEAR, "optimizer": "adam"}, 0.999, 0.9, "weights"),
    "weight_decay": (LINEAR, 5e-4, 0.1, "weights"),
    "filter_lr": (LEARNED, None, 0.1, "weights"),
    "theta_lr": (LEARNED, None, 0.1, "weights"),
    "filter_weight_decay": (LEARNED, 0.0, 0.5, "weights"),
    "clip": (LINEAR, None, 0.01, "weights"),
    "schedule": (KEPT, "cosine", "constant", "weights"),
    "points": ({**KEPT, "schedule": "steps"}, "1", "2", "weights"),
    "step_factor": ({**KEPT, "schedule": "steps", "points": "1"}, 0.2, 0.5, "weights"),
    "pct_start": (ONE_CYCLE, 0.3, 0.6, "weights"),
    "div_factor": (ONE_CYCLE, 25.0, 5.0, "weights"),
    "final_div_factor": (ONE_CYCLE, 1e4, 2.0, "weights"),
    "base_momentum": (ONE_CYCLE, 0.85, 0.5, "weights"),
    "max_momentum": (ONE_CYCLE, 0.95, 0.9, "weights"),
    "eval_every": (LINEAR, 1, 3, "history"),
    "patience": ({**LINEAR, "epochs": 12, "lr": 3.0}, None, 1, "steps"),
    "top_k": (LINEAR, 5, 2, "numbers"),
    "precision": (LINEAR, "float32", "bfloat16", "weights"),
    "channels_last": ({**RESNET, "augment": "none"}, True, False, "memory"),
    "compile": (LINEAR, False, True, "compiled"),
    "deterministic": (LINEAR, True, False, "on a GPU"),
    "seed": (LINEAR, 0, 1, "weights"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Ten noisy images of each of two classes, 16×16 pixels, and four to test."
    import numpy as np
    from PIL import Image

    place, chance = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for part, n in (("train", 10), ("test", 4)):
        for k, name in enumerate(("dark", "light")):
            (place / part / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(chance.randint(60 * k, 200 + 50 * k, (16, 16, 3), np.uint8)).save(
                    place / part / name / f"{i}.png"
                )
    return place


def _bytes(tensors):
    return {k: v.contiguous().numpy().tobytes() for k, v in tensors.items()}


class Watched:
    "What a run does, noted while it is computed."

    def __init__(self, monkeypatch):
        self.inputs, self.memory, self.compiled, self.steps = [], set(), [], []
        build_model, step = trainer.build_model, trainer.Training.step

        def build(e):
            model = build_model(e)
            model.register_forward_pre_hook(self.note_input)
            return model

        def noted_step(training, x, y):
            self.steps.append(len(x))
            return step(training, x, y)

        def compiled(model):
            self.compiled.append(True)
            return model

        monkeypatch.setattr(trainer, "build_model", build)
        monkeypatch.setattr(trainer.Training, "step", noted_step)
        monkeypatch.setattr(torch, "compile", compiled)

    def note_input(self, module, args):
        (x,) = args
        self.inputs.append((module.training, tuple(x.shape)))
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.memory.add(last and not x.is_contiguous())


def _observe(e, monkeypatch):
    "What can be seen of a run: what the network gets, what it is, and what comes out."
    watched = Watched(monkeypatch)
    fitted = fit(e, World(CPU))
    with algorithms(e, torch.device("cuda")):
        gpu = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    monkeypatch.undo()
    state = fitted.model.state_dict()
    numbers = {k: v for k, v in fitted.numbers.items() if k not in ("trained", "resumed")}
    return {
        "inputs": watched.inputs,
        "memory": watched.memory,
        "compiled": watched.compiled,
        "on a GPU": gpu,
        "steps": watched.steps,
        "shapes": {k: v.shape for k, v in state.items()},
        "weights": _bytes(state),
        "history": fitted.history,
        "numbers": numbers,
        "predictions": fitted.predictions.numpy().tobytes(),
        "data": Task(e).data.checksum,
    }


def test_the_table_has_every_setting():
    assert set(EFFECTS) == {f.name for f in dataclasses.fields(Experiment)}


@pytest.mark.parametrize("field", EFFECTS)
def test_a_setting_has_an_effect(field, folder, tmp_path, monkeypatch):
    settings, one, other, differs = EFFECTS[field]
    settings = {k: str(folder) if v == "FOLDER" else v for k, v in settings.items()}
    file = tmp_path / "w.safetensors"
    if "FILE" in (settings.get("weights"), other):
        torch.manual_seed(5)
        start = build_model(experiment(**{k: v for k, v in settings.items() if k != "weights"}))
        save_tensors(start.state_dict(), tmp_path / "w")
    observed = []
    for value in (one, other):
        asked = {k: str(file) if v == "FILE" else v for k, v in {**settings, field: value}.items()}
        if field == "dataset" and value == "textures":
            asked["loss"] = "cross-entropy"
        e = experiment(**asked)
        check(e, CPU)
        observed.append(_observe(e, monkeypatch))
    assert observed[0][differs] != observed[1][differs]
    assert any(isinstance(v, bytes) and v for v in observed[0]["weights"].values())


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(margin=2.0), "margin goes with loss=hinge or squared-hinge"),
        (dict(loss="mse", label_smoothing=0.1), "label_smoothing goes with loss=cross-entropy"),
        (dict(target_scale=2.0, loss="mse"), "textures has classes: leave target_scale out"),
        (dict(mix_beta=2.0), "mix_beta goes with mix"),
        (dict(beta2=0.9), "beta2 goes with optimizer=adam or adamw"),
        (dict(points="3"), "points goes with schedule=steps or piecewise"),
        (dict(pct_start=0.5), "pct_start goes with schedule=one-cycle"),
        (dict(schedule="one-cycle", momentum=0.5), "leave momentum out"),
        (dict(patience=2), "patience needs validation images"),
        (dict(new_head=True), "new_head goes with weights"),
        (dict(width=8), "linear has no width: leave width out"),
        (dict(widen=4), "linear has no widen"),
        (dict(L=4), "linear has no L"),
        (dict(engine="no-bound"), "linear has no engine"),
        (dict(model="wytiny", width=2, ghost=8), "ghost goes with norm=ghost-batch"),
        (dict(model="scattering-linear", filter_lr=0.1), "filter_lr goes with learn="),
        (
            dict(model="scattering-linear", learn="pixelwise", theta_lr=0.1),
            "theta_lr goes with learn=canonical or equivariant, got learn=pixelwise: leave theta_lr out",
        ),
        (dict(model="scattering-linear", init="random", slant=0.5), "leave slant out"),
        (
            dict(model="scattering-linear", order=0, slant=0.5),
            "order=0 has no wavelets, and slant is of them: leave slant out",
        ),
        (
            dict(model="scattering-linear", order=0, init="random"),
            "order=0 has no wavelets, and init is of them: leave init out",
        ),
        (dict(model="scattering-linear", engine="svd-gradient"), "learn=canonical"),
        (dict(model="scattering-linear", engine="no-bound"), "set learn=canonical or equivariant"),
        (
            dict(dataset="mixtures", per_class=None, loss="mse", top_k=2),
            "top_k counts guesses of a class, and mixtures has targets: leave top_k out",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(settings, message):
    import re

    with pytest.raises(ValueError, match=re.escape(message)):
        check(
            experiment(**{**dict(model="linear", per_class=2, epochs=2, batch_size=8), **settings}),
            CPU,
        )


def test_a_split_of_a_file_has_no_seed(tmp_path):
    from wavescat.data.load import load
    from wavescat.data.split_files import save_split
    from wavescat.training.task import split_of

    e = experiment(model="linear", per_class=2, epochs=2, batch_size=8)
    save_split(split_of(e), load("textures"), tmp_path / "s.json")
    stored = dict(model="linear", split=str(tmp_path / "s.json"), epochs=2, batch_size=8)
    check(experiment(**stored), CPU)
    with pytest.raises(ValueError, match="says which images train: leave split_seed out"):
        check(experiment(**stored, split_seed=1), CPU)


OF_A_MODEL = {
    "width": 4,
    "widen": 1,
    "convolution": "depthwise",
    "norm": "group",
    "ghost": 8,
    "J": 1,
    "L": 3,
    "order": 1,
    "learn": "canonical",
    "init": "random",
    "upsample": "nearest",
    "slant": 0.5,
    "engine": "no-bound",
}


@pytest.mark.parametrize("name", [m for m in MODELS if "@" not in m])
def test_the_settings_of_a_model(name):
    "What a model has changes it; what it hasn't is refused."
    options = model_options(name)
    small = {k: v for k, v in dict(width=2, widen=2, L=2).items() if k in options}
    side = 64 if name in ("alexnet", "alexnet-imagenet", "densenet", "resnet50") else 32

    def made(**more):
        torch.manual_seed(0)
        model = build(name, (3, side, side), 4, **{**small, **more}).eval()
        x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return {k: v.shape for k, v in model.state_dict().items()}, model(x)

    before = made()
    for setting, value in OF_A_MODEL.items():
        if setting not in options:
            with pytest.raises(ValueError, match=f"{setting}.*leave {setting} out"):
                check(experiment(model=name, **{setting: value}), CPU)
        elif setting not in ("ghost", "engine"):  # these go with norm=ghost-batch and with learn
            after = made(**{setting: value})
            assert before[0] != after[0] or not torch.equal(before[1], after[1]), setting


def _stored(found):
    "The experiments in what a report keeps, with their identities."
    if isinstance(found, dict):
        if isinstance(found.get("experiment"), dict):
            yield found["identity"], found["experiment"]
        for part in found.values():
            yield from _stored(part)
    elif isinstance(found, list):
        for part in found:
            yield from _stored(part)


def test_experiments_of_the_reports_are_as_they_were():
    "Each has the identity that it is stored under, and its settings go together still."
    from wavescat.training.settings import check_settings

    known = {
        identity: settings
        for path in (ROOT / "reports").glob("*/*.json")
        for identity, settings in _stored(json.loads(path.read_text(encoding="utf-8")))
    }
    assert len(known) > 500
    for identity, settings in known.items():
        e = Experiment(**settings)
        check_settings(e)
        assert e.identity == identity
        assert not (
            e.order == 0
            or e.split.endswith(".json")
            or e.dataset == "mixtures"
            and "top_k" in e.changed
        )
