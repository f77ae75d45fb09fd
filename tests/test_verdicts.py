"""What pages say, on made-up numbers.

Clearly better, clearly worse, no difference, too few seeds, at chance, a run that failed."""

import math

import numpy as np
import pytest
import torch

from wavescat.runs.experiment import experiment
from wavescat.studies import (
    baseline,
    l_sweep,
    linear_and_alexnet,
    parametric,
    parametric_differences,
    parametric_verdict,
    regimes,
    stability,
    stability_bound,
    stability_verdict,
    tuned,
    variance,
    wytiny,
)
from wavescat.studies.comparison import CANNOT_TELL, Pair, compare_pairs, count_verdict, effect
from wavescat.studies.presets import resolve, values_of
from wavescat.studies.results import condition, made_up_runs

SPREAD = [0.0, 1.4, -0.9, 0.3, 0.8]  # points that seeds lie apart
CASES = {
    "clearly better": lambda e, scattering: 60 + 9 * scattering + SPREAD[e.seed],
    "clearly worse": lambda e, scattering: 60 - 9 * scattering + SPREAD[e.seed],
    "no difference": lambda e, scattering: 60 + 0.1 * scattering + SPREAD[e.seed],
    "too few seeds": lambda e, scattering: 60 + 9 * scattering if e.seed == 0 else None,
    "all seeds alike": lambda e, scattering: 60,
    "at chance": lambda e, scattering: 12.5,
    "a run failed": lambda e, scattering: (
        math.nan if scattering and e.seed == 1 else 60 + 9 * scattering + SPREAD[e.seed]
    ),
    "nothing computed": lambda e, scattering: None,
}


def plan_of(study, module, **changes):
    return module.make_plan(values_of(study, resolve(study, "smoke", {"seeds": "0-4", **changes})))


def runs_of(plan, case):
    return made_up_runs(plan.experiments, lambda e: CASES[case](e, e.model == "scatresnet18"))


@pytest.mark.parametrize(
    "case, says",
    [
        ("clearly better", "ScatResNet-18, L=8 is 9.0 points better than ResNet-18 (95 % interval"),
        ("clearly worse", "ScatResNet-18, L=8 is 9.0 points worse than ResNet-18 (95 % interval"),
        ("no difference", "No difference between scattering and plain first layers is shown at"),
        ("too few seeds", "These runs can't tell the models apart: that takes at least two seeds"),
        ("all seeds alike", "These runs can't tell the models apart"),
        ("at chance", "These runs can't tell the models apart"),
        ("a run failed", "ScatResNet-18, L=8 is 8.7 points better than ResNet-18"),
        ("nothing computed", "These runs can't tell the models apart"),
    ],
)
def test_baseline(case, says):
    plan = plan_of("baseline", baseline, per_class="2")
    table = baseline.compare_models(plan, runs_of(plan, case))
    assert says in baseline.verdict(table)


@pytest.mark.parametrize(
    "case, says",
    [
        ("clearly better", "chosen on validation images, is better than no scattering: +9.0"),
        ("clearly worse", "chosen on validation images, is worse than no scattering: -9.0"),
        ("no difference", "differs from no scattering by +0.1 points on the test set"),
        ("too few seeds", "these runs can't tell whether it differs from no scattering (+9.0"),
        ("a run failed", "is better than no scattering: +8.7 points"),
        ("nothing computed", "No run with scattering counts yet."),
    ],
)
def test_l_sweep(case, says):
    plan = plan_of("l_sweep", l_sweep, L="8", control_L="")
    choice = l_sweep.choose_orientations(plan, runs_of(plan, case))
    assert says in l_sweep.verdict(choice)


@pytest.mark.parametrize(
    "case, says",
    [
        ("clearly better", "Of 1 comparisons with ResNet-18, 1 are better and 0 worse"),
        ("clearly worse", "Of 1 comparisons with ResNet-18, 0 are better and 1 worse"),
        ("no difference", "Of 1 comparisons with ResNet-18, 0 are better and 0 worse"),
        ("a run failed", "Better: ScatResNet-18, L=8 with 2 per class (+8.7 points"),
        ("too few seeds", CANNOT_TELL),
        ("nothing computed", CANNOT_TELL),
    ],
)
def test_regimes(case, says):
    plan = plan_of("regimes", regimes, models="resnet18, scatresnet18 L:8", per_class="2")
    runs = runs_of(plan, case)
    table, crossed = regimes.compare_models(plan, runs), regimes.crossings(plan, runs)
    assert says in regimes.verdict(plan, table, crossed)


def test_tuned_without_results():
    plan = plan_of("tuned", tuned)
    runs = runs_of(plan, "nothing computed")
    assert tuned.verdict(plan, tuned.compare_models(plan, runs)) == CANNOT_TELL


@pytest.mark.parametrize(
    "accuracy, says",
    [
        ({2: [60, 61, 60.5], 8: [70, 71, 70.5]}, "The mean accuracy depends on L"),
        ({2: [60, 68, 53], 8: [60.5, 67, 54]}, "No difference between the means of the 2 L is"),
        ({2: [60], 8: [70]}, "one seed each can't say how many would tell them apart"),
        ({2: [60, 60], 8: [70, 70]}, "the seeds of some L all gave the same accuracy"),
        ({}, "Equal variances can't be tested"),
    ],
)
def test_variance(accuracy, says):
    assert says in variance.verdict(accuracy)


def test_wytiny_compares_seed_by_seed():
    plan = plan_of("wytiny", wytiny, models="wytiny, wytiny norm:group")
    runs = made_up_runs(
        plan.experiments, lambda e: 20.0 + 9 * e.seed + (e.norm == "group") * (3 + e.seed / 10)
    )
    text = wytiny.verdict(plan, runs, wytiny.compare_models(plan, runs))
    assert "+3.2 points" in text and "no difference is shown" not in text


def moved(factor, far=1.0, shares=(0.98, 1.0, 1.03)):
    "Made-up distances of three images that grow with the strength."
    ratios = factor * np.array(shares)[:, None] * np.linspace(0, 1, 3)
    return {"stale": False, "ratios": {"warp": ratios.tolist()}, "reference": [far] * 3}


def falls(power, scales=(1, 2, 3)):
    "Made-up distances that fall as a power of 2ᴶ."
    rows = {J: [[2.0 ** (power * J), 2 * 2.0 ** (power * J)]] * 3 for J in scales}
    return {J: {"stale": False, "shift": v, "warp": [[0.5]] * 3} for J, v in rows.items()}


@pytest.mark.parametrize(
    "models, scaled, says",
    [
        ((1.0, 0.5), {}, "moves less than the pixels under warp; as a share of the distance"),
        ((0.5, 1.0), {}, "moves less than the pixels under nothing, more under warp; as a share"),
        ((0.5, 0.5), {}, "moves less than the pixels under nothing (1 of 1 undecided); as a share"),
        ((1.0, 0.5), {}, "it does so under all."),
        ((0.5, 1.0), {}, "it does so under none."),
        ((1.0, 0.5), {}, "(sup ‖∇τ‖ = 0.82) scattering J=2 moves least, by 0.50 of its norm;"),
        ((1.0, None), {}, "pixels moves least, by 1.00 of its norm."),
        ((None, 0.5), {}, "scattering J=2 moves least, by 0.50 of its norm."),
        ((None, None), falls(-1), "A shift by 1 pixel moves scattering as 2ᴶ to the power −1.00 "),
        ((None, None), falls(-2), "(95 % interval −2.00 to −2.00), −2.00 in the last step, where"),
        ((None, None), falls(-1, (2,)), "Nothing is computed yet."),
        ((None, None), {1: None, 2: None}, "Nothing is computed yet."),
    ],
)
def test_stability(models, scaled, says):
    changes = {"representations": "pixels, scattering J:2", "deformations": "warp"}
    plan = stability.make_plan(values_of("stability", resolve("stability", "smoke", changes)))
    found = {name: v and moved(v) for name, v in zip(plan.models, models, strict=True)}
    levels = stability.levels_of(plan, (32, 32))
    measured = stability.Measured(torch.zeros(3, 1, 32, 32), levels, {}, found)
    bound = stability_bound.Bound(scaled, "warp")
    assert says in stability_verdict.verdict(plan, measured, bound)


def test_stability_takes_only_what_this_code_measured():
    "A stale measurement isn't shown."
    plan = stability.make_plan(values_of("stability", resolve("stability", "smoke")))
    stale = moved(1.0) | {"stale": True}
    measured = stability.Measured(torch.zeros(3, 1, 32, 32), {}, {}, {"pixels": stale})
    bound = stability_bound.Bound({J: m | {"stale": True} for J, m in falls(-1).items()}, "warp")
    assert stability_verdict.verdict(plan, measured, bound) == "Nothing is computed yet."


ROWS = {
    "clearly better": lambda e, learns: 60 + 3 * e.seed + learns * (9 + SPREAD[e.seed]),
    "clearly worse": lambda e, learns: 60 + 3 * e.seed - learns * (9 + SPREAD[e.seed]),
    "no difference": lambda e, learns: 60 + 3 * e.seed + learns * (SPREAD[e.seed] - 0.3),
}


@pytest.mark.parametrize(
    "case, says",
    [
        ("clearly better", "Learned filters against fixed ones: TF LS+LL with 16 images +9.32 poi"),
        ("clearly better", "p = 1.8e-05 after Holm, 5 pairs)."),
        ("clearly worse", "TF LS+LL with 16 images -9.32 points (95 % -10.39 to -8.25, p = "),
        ("no difference", "TF LS+LL with 16 images +0.02 points (95 % -1.05 to +1.09, p = 0.96"),
        ("too few seeds", "These runs can't tell the rows apart: that takes at least two seeds"),
        ("all seeds alike", "These runs can't tell the rows apart"),
        ("at chance", "These runs can't tell the rows apart"),
        ("a run failed", "TF LS+LL with 16 images: 1 of 5 runs diverged, in epoch 2 of 2."),
        ("nothing computed", "These runs can't tell the rows apart"),
    ],
)
def test_parametric(case, says):
    rows = "scattering-linear, scattering-linear learn:canonical"
    plan = plan_of("parametric", parametric, rows=rows, per_class="2")
    runs = made_up_runs(plan.experiments, lambda e: (CASES | ROWS)[case](e, bool(e.learn)))
    for r in runs.diverged(plan.experiments):
        r["diverged_epoch"] = 2
    compared = parametric_differences.compare_rows(plan, runs)
    assert says in parametric_verdict.verdict(plan, runs, compared)


def test_runs_that_call_every_image_alike_are_named():
    alike = linear_and_alexnet.count_at_chance([np.array([1, 1, 1]), np.array([1, 2, 1])])
    assert linear_and_alexnet.chance_remark(alike, 2) == (
        " (1 of 2 runs learned nothing: every image is called alike)"
    )
    assert linear_and_alexnet.chance_remark(0, 2) == ""


def test_a_failed_run_is_left_out_and_counted():
    plan = plan_of("baseline", baseline, per_class="2", small_validation="")
    runs = runs_of(plan, "a run failed")
    scattering = plan.groups[2, "ScatResNet-18, L=8"]
    assert len(runs.values(scattering)) == 4 and len(runs.diverged(scattering)) == 1
    assert "1 diverged and left out" in condition(runs.all)
    assert "missing" not in condition(runs.all)


def test_correction_is_over_all_comparisons():
    "A difference that is shown alone isn't among many."
    one = Pair("Scat", [61.0, 62.0, 63.2], [59.0, 60.4, 60.6], {"images": 2})
    others = [Pair("Scat", [60.0, 61.9, 59.1], [60.2, 61.7, 59.3], {"images": n}) for n in range(9)]
    alone, among = compare_pairs([one]), compare_pairs([one, *others])
    assert alone.p_holm[0] == alone.p[0] == among.p[0] < among.p_holm[0] == 10 * among.p[0]


@pytest.mark.parametrize("sign, words", [(1, "Better: Scat"), (-1, "Worse: Scat")])
def test_which_sign_is_better(sign, words):
    table = compare_pairs([Pair("Scat", [70.0, 71.0, 70.4], [60.0, 61.0, 60.7])])
    text = count_verdict(table, "ResNet-18", "here", better_sign=sign)
    assert words in text and "Of 1 comparisons with ResNet-18" in text


def test_the_effect_of_too_few_seeds_has_no_certainty():
    table = compare_pairs([Pair("Scat", [70.0], [60.0])])
    e = effect("here", "Scat", table.iloc[0], [{"seconds": 4.0}], [{"seconds": 2.0}])
    assert (e["difference"], e["low"], e["p"], e["seeds"]) == (10.0, None, None, [1, 1])
    assert e["cost"] == 2.0


def test_results_are_made_up_for_any_experiment():
    runs = made_up_runs([experiment(seed=s) for s in range(2)], lambda e: 50.0 + e.seed)
    assert runs.by_seed(runs.by_experiment) == {0: 50.0, 1: 51.0}
