"""Scores of planted answers, by hand and by SciPy, statsmodels and other formulas; random readers are random."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from scipy import optimize, stats

from kin_cli.errors import InputError
from kin_cli.study.plan import REFERENCE, Study, Trial
from kin_cli.study.score import Scores, Share, bradley_terry, cohen, fleiss, holm, scored
from tests.helpers.studies import METHODS, answered, at_random, paper_study

pytest.importorskip("statsmodels", reason="scores need statsmodels")


def share(scores: Scores, challenge: str, dataset: str, method: str) -> Share:
    return next(
        one for one in scores.shares if (one.challenge, one.dataset, one.method) == (challenge, dataset, method)
    )


@pytest.fixture(scope="module")
def study() -> Study:
    return paper_study()


@pytest.fixture(scope="module")
def scores(study: Study) -> Scores:
    """KIN is best in the even items and TIN in the odd; KIN always deceives, IN never; r0 misses every item 3."""

    def choose(reader: str, trial: Trial, draw: random.Random) -> str | None:
        if reader == "r0" and trial.item == 3:
            return None
        if trial.practice:
            return trial.slots[0]
        if trial.challenge == "quality":
            return "KIN" if trial.item % 2 == 0 else "TIN"
        other = next(name for name in trial.slots if name != REFERENCE)
        return {"KIN": "KIN", "IN": REFERENCE, "TIN": "TIN" if trial.item % 2 == 0 else REFERENCE}[other]

    return scored(study, answered(study, choose))


def test_shares_are_counted_by_hand(scores: Scores) -> None:
    even, odd = share(scores, "quality", "even", "KIN"), share(scores, "quality", "odd", "TIN")
    assert (even.chosen, even.of, even.missed, even.share) == (50, 50, 0, 1.0)
    assert (odd.chosen, odd.of, odd.missed, odd.share) == (49, 49, 1, 1.0)
    assert share(scores, "quality", "all", "KIN").share == 50 / 99
    assert share(scores, "quality", "all", "IN").chosen == 0
    assert share(scores, "fidelity", "all", "KIN").share == 1.0
    assert share(scores, "fidelity", "all", "IN").share == 0.0
    assert share(scores, "fidelity", "all", "TIN").share == 50 / 99
    assert len(scores.shares) == 2 * 3 * 3


def test_intervals_and_tests_are_those_of_the_beta_and_binomial_distributions(scores: Scores) -> None:
    for one in scores.shares:
        low = 0.0 if one.chosen == 0 else stats.beta.ppf(0.025, one.chosen, one.of - one.chosen + 1)
        high = 1.0 if one.chosen == one.of else stats.beta.ppf(0.975, one.chosen + 1, one.of - one.chosen)
        assert (one.low, one.high) == pytest.approx((low, high), rel=1e-6)
        assert one.chance == pytest.approx(1 / 3 if one.challenge == "quality" else 1 / 2)
        pmf = stats.binom.pmf(np.arange(one.of + 1), one.of, one.chance)
        assert one.p == pytest.approx(pmf[pmf <= pmf[one.chosen] * (1 + 1e-7)].sum(), rel=1e-6)


def test_holm_is_computed_over_the_study_by_its_definition(scores: Scores) -> None:
    raw = np.array([one.p for one in scores.shares])
    order = np.argsort(raw)
    expected = np.empty(len(raw))
    expected[order] = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)).clip(max=1)
    assert [one.p_holm for one in scores.shares] == pytest.approx(expected.tolist(), rel=1e-9)
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_strengths_are_those_of_greatest_likelihood() -> None:
    wins = np.array([[0, 30.0, 25], [12, 0, 18], [5, 9, 0]])

    def loss(free: np.ndarray) -> float:
        strengths = np.append(free, -free.sum())
        return -sum(
            (wins[i, j] + 0.5 * (wins[i, j] + wins[j, i] > 0)) * np.log(stats.logistic.cdf(strengths[i] - strengths[j]))
            for i in range(3)
            for j in range(3)
            if i != j
        )

    best = optimize.minimize(loss, np.zeros(2), method="BFGS", tol=1e-12)
    strengths, errors = bradley_terry(wins)
    np.testing.assert_allclose(strengths[:2], best.x, atol=1e-5)
    assert strengths.sum() == pytest.approx(0)
    np.testing.assert_allclose(errors[:2], np.sqrt(np.diag(best.hess_inv)), rtol=0.05)


def test_ranks_follow_choices(scores: Scores) -> None:
    ranks = {(rank.dataset, rank.rank): rank for rank in scores.ranks}
    assert ranks["even", 1].method == "KIN"
    assert ranks["odd", 1].method == "TIN"
    assert ranks["all", 3].method == "IN"
    assert all(np.isfinite([rank.low, rank.strength, rank.high]).all() for rank in scores.ranks)


def test_kappas_by_hand() -> None:
    # Fleiss (1971), the table of ten subjects and fourteen raters; kappa 0.210
    table = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    ratings = [[str(kind) for kind, count in enumerate(row) for _ in range(count)] for row in table]
    assert fleiss(ratings) == pytest.approx(0.210, abs=5e-4)
    # 20 both yes, 15 both no, 5 and 10 mixed: 0.7 observed, 0.5 by chance
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen(pairs) == pytest.approx(0.4)
    assert fleiss([]) is None
    assert fleiss([["a", "a"], ["a", "a"]]) is None
    assert cohen([]) is None
    assert cohen([("a", "a")]) is None


def test_agreement_between_and_within(study: Study, scores: Scores) -> None:
    assert scores.between["quality"] == {"kappa": pytest.approx(1.0), "questions": 19, "readers": 5}
    assert scores.between["fidelity"]["questions"] == 57
    within = scores.within["quality"]["all"]
    assert within["pairs"] == within["same"] >= 8
    json.dumps(scores.as_dict())


def test_practice_and_repetitions_do_not_count(study: Study) -> None:
    def choose(_reader: str, trial: Trial, _draw: random.Random) -> str:
        if trial.practice or trial.repeat_of is not None:
            return "IN" if trial.challenge == "quality" else REFERENCE
        return "KIN" if trial.challenge == "quality" else next(name for name in trial.slots if name != REFERENCE)

    found = scored(study, answered(study, choose))
    assert share(found, "quality", "all", "KIN").share == 1.0
    assert all(share(found, "fidelity", "all", method).share == 1.0 for method in METHODS)
    assert found.within["quality"]["all"]["same"] == 0


def test_nothing_to_score_is_told(study: Study) -> None:
    with pytest.raises(InputError, match="no answer"):
        scored(study, {})
    with pytest.raises(InputError, match="no answer"):
        scored(study, answered(study, lambda *_: None))


@pytest.mark.slow
def test_readers_who_choose_at_random_are_not_significant_in_95_of_100_seeds() -> None:
    clean = 0
    for seed in range(100):
        study = paper_study(seed=seed)
        found = scored(study, answered(study, at_random, seed))
        clean += all(one.p_holm is None or one.p_holm >= 0.05 for one in found.shares)
    assert clean >= 95
