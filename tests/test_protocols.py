"""The plans of the studies: what preset `paper` computes is the published protocol."""

import dataclasses

import pytest
from conftest import ROOT

from wavescat.studies.plans import experiments_of
from wavescat.studies.presets import resolve
from wavescat.studies.published import protocol, published

STUDIES = sorted(p.stem for p in (ROOT / "nbs" / "studies").glob("*.ipynb"))
MEASURING = ("speed", "stability")  # they train nothing
BACKBONES = ("resnet14", "resnet18", "resnet50", "densenet", "inception-resnet", "alexnet")


def planned(study, preset="paper"):
    return experiments_of(study, resolve(study, preset))


def values(experiments, *names):
    "The values that experiments have in some settings."
    return {tuple(getattr(e, n) for n in names) for e in experiments}


@pytest.mark.parametrize("preset", ["smoke", "quick", "cpu", "paper"])
@pytest.mark.parametrize("study", STUDIES)
def test_every_preset_gives_a_plan(study, preset):
    experiments = planned(study, preset)
    if study in MEASURING:
        assert experiments == []
        return
    fewest = 3 if study == "seeing" else 4  # seeing looks at one run of each model
    assert len(experiments) == len(set(experiments)) >= fewest


def test_filters_are_learned_in_full_batches_from_the_tight_frame():
    experiments = planned("filters")
    shared = values(experiments, "dataset", "per_class", "batch_size", "init", "augment")
    assert shared == {("cifar10", 100, 1000, "tight-frame", "none")}
    assert [e.learn for e in experiments] == [None, "canonical", "equivariant", "pixelwise"]


def test_biomass():
    experiments = planned("biomass")
    assert values(experiments, "dataset", "augment", "loss", "target_scale", "width") == {
        ("csiro-biomass", "biomass", "mse", 2000, 64)
    }
    assert values(experiments, "epochs", "batch_size", "lr", "momentum", "weight_decay") == {
        (200, 32, 1e-4, 0.9, 5e-4)
    }
    splits = {("stratified", 42), ("date", 42), ("state", 42)}
    assert values(experiments, "split", "split_seed") >= splits


def test_tuned_tries_the_published_settings_too():
    first = [e for e in planned("tuned") if e.seed == 100]
    tried = {
        model: values([e for e in first if e.model == model], "lr", "weight_decay", "epochs")
        for model in ("resnet18", "scatresnet18")
    }
    assert tried["resnet18"] == tried["scatresnet18"]
    assert (0.1, 5e-4, 200) in tried["resnet18"]
    assert len(tried["resnet18"]) == 45


def test_tiny_imagenet_has_every_backbone_behind_either_front_and_on_pixels():
    experiments = planned("tiny_imagenet")
    fronts = ("scattering-", "s2d-", "")
    assert {e.model for e in experiments} == {f"{f}{b}" for f in fronts for b in BACKBONES}
    orders = {e.order for e in experiments if e.model == "scattering-resnet14"}
    assert orders == {1, 2}
    deep = [e for e in experiments if "alexnet" not in e.model]
    assert values(deep, "dataset", "per_class", "validation", "augment", "width") == {
        ("tiny-imagenet", None, 0, "scattering-tiny", 64)
    }
    assert values(deep, "epochs", "batch_size", "lr", "momentum", "weight_decay") == {
        (15, 128, 0.1, 0.9, 5e-4)
    }
    assert values(deep, "schedule", "points", "step_factor") == {("steps", "4/8/12", 0.2)}


def test_wytiny():
    experiments = planned("wytiny")
    assert {e.norm for e in experiments} == {"batch", "group", "layer", "ghost-batch"}
    kinds = {"plain", "depthwise", "depthwise-separable"}
    assert {e.convolution for e in experiments} == kinds
    settings = protocol("wytiny")
    assert values(experiments, *settings) == {tuple(settings.values())}


def test_linear_and_alexnet():
    experiments = planned("linear_and_alexnet")
    assert values(experiments, "model", "loss", "margin", "lr") == {
        ("linear", "hinge", 20, 0.001),
        ("linear", "squared-hinge", 20, 0.001),
        ("linear", "cross-entropy", 1, 0.001),
        ("alexnet", "cross-entropy", 1, 0.001),
        ("alexnet", "cross-entropy", 1, 0.0001),
    }
    assert values(experiments, "dataset", "optimizer", "per_class") == {
        ("tiny-imagenet", "adam", None)
    }


LINEAR_SCHEDULES = {  # images of a class → epochs, images a batch, learning rate
    10: (5000, 128, 0.06),
    50: (1000, 500, 0.13),
    100: (500, 1000, 0.2),
    None: (500, 1024, 0.2),
}
WIDE_SCHEDULES = {
    10: (3000, 128, 0.1),
    50: (2000, 128, 0.1),
    100: (1000, 128, 0.1),
    None: (500, 1024, 0.1),
}


def parametric_schedules():
    "(model, images of a class) → epochs, batch, learning rate, that of the filters, split."
    split = {n: "permuted" if n else "stratified" for n in LINEAR_SCHEDULES}
    found = {}
    for model in ("scattering-linear", "scattering-linear-no-affine"):
        for n, schedule in LINEAR_SCHEDULES.items():
            found[model, n] = (*schedule, 0.1, split[n])
    for model, filter_lr in (("scattering-wrn", 0.1), ("wrn", None)):
        for n, schedule in WIDE_SCHEDULES.items():
            found[model, n] = (*schedule, filter_lr, split[n])
    return found


def schedule_of(e):
    return (e.epochs, e.batch_size, e.lr, e.filter_lr if e.learn else None, e.split)


@pytest.mark.parametrize("study", ["parametric", "challenge"])
def test_parametric_scattering_networks(study):
    experiments = planned(study)
    seeds = published("parametric")["seeds"]["cifar10"]
    assert len(seeds) == 10
    assert {e.seed for e in experiments} == {e.split_seed for e in experiments} == set(seeds)
    main = [e for e in experiments if e.augment != "parametric-cifar"]
    other = [e for e in experiments if e.augment == "parametric-cifar"]
    assert values(main, "schedule", "momentum", "weight_decay", "filter_weight_decay") == {
        ("one-cycle", 0.9, 5e-4, 0)
    }
    assert values(main, "augment", "validation", "widen") == {("parametric-cifar-code", 0, 8)}
    fixed = {("scattering-linear", None, "tight-frame")} if study == "parametric" else set()
    assert values(other, "model", "learn", "init") == fixed
    found = {
        (e.model.partition("@")[0], e.per_class): schedule_of(e)
        for e in experiments
        if e.learn or e.model == "wrn"
    }
    expected = parametric_schedules()
    if study == "challenge":
        expected = {
            (model, n): v
            for (model, n), v in expected.items()
            if n == 10 and model != "scattering-linear-no-affine"
        }
    assert found == expected


SCATRESNET = (200, 128, 0.1, 0.9, 5e-4, "scatresnet", 64, 1)
OTHER_PROTOCOLS = {
    *MEASURING,
    "filters",
    "biomass",
    "tuned",
    "tiny_imagenet",
    "wytiny",
    "linear_and_alexnet",
    "parametric",
    "challenge",
}


def scatresnet_settings(e):
    optimiser = (e.epochs, e.batch_size, e.lr, e.momentum, e.weight_decay)
    return (*optimiser, e.augment, e.width, e.eval_every)


@pytest.mark.parametrize("study", sorted({*STUDIES} - OTHER_PROTOCOLS))
def test_the_others_use_scatresnets_protocol(study):
    experiments = planned(study)
    assert {e.validation for e in experiments} <= {5000, 10000}
    for e in experiments:
        if study == "transfer" and e.classes == "5-9":
            assert (e.epochs, e.lr, e.eval_every) == (20, 0.01, 1)
            continue
        if study == "transfer":
            assert (e.classes, e.eval_every, e.validation) == ("0-4", 200, 5000)
            e = dataclasses.replace(e, eval_every=1)
        if study == "seeing" and e.model == "scattering-linear":
            assert e.augment == "none"
            e = dataclasses.replace(e, augment="scatresnet")
        assert scatresnet_settings(e) == SCATRESNET
