"""Scores of a study: shares with exact intervals, tests against chance, ranks, agreement between and within readers.

Only answers that count are scored: not those for practice, not the second answer to a repeated trial, and not missed
ones, whose number is told. The intervals are Clopper and Pearson's (1934), the tests binomial, corrected by Holm (1979)
over the whole study. The answers of all readers are pooled: they are taken as independent, although readers of the
same image may agree, so an interval tells of these images and readers.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from kin_cli.errors import InputError
from kin_cli.geometry import Doubles
from kin_cli.study.answers import Event
from kin_cli.study.plan import REFERENCE, Study

_ALL = "all"
_CONFIDENCE = 0.95
_PSEUDO_WINS = 0.5  # of each method over each other, so that one that never or always won has a finite strength
_NEEDED = "pip install kin-cli[study]"


@dataclass(frozen=True)
class Answer:
    """An answer with what the key tells of it, a line of the CSV.

    ``chosen`` is the method that was called best, or taken for real ("reference" if the reader was right); None if it
    was missed. ``method`` is the method that a fidelity trial is about.
    """

    reader: str
    trial: int
    challenge: str
    item: str
    dataset: str
    method: str | None
    shown: tuple[str, ...]
    chosen: str | None
    missed: bool
    seconds: float | None
    practice: bool
    repeat_of: int | None
    at: str

    @property
    def counts(self) -> bool:
        """Whether it is scored, given that it was not missed."""
        return not self.practice and self.repeat_of is None


@dataclass(frozen=True)
class Share:
    """How often a method was chosen as the best (quality), or taken for real (fidelity).

    ``share`` = ``chosen`` / ``of``, its 95 % interval, the share by chance, the p-value of the binomial test against
    chance (two-sided), and that after Holm's correction. None where there is no answer. ``missed`` answers are not in
    ``of``; ``seconds`` is the median time of an answer.
    """

    challenge: str
    dataset: str
    method: str
    chosen: int
    of: int
    missed: int
    share: float | None
    low: float | None
    high: float | None
    chance: float
    p: float | None
    p_holm: float | None
    seconds: float | None


@dataclass(frozen=True)
class Rank:
    """Bradley–Terry strength of a method: natural logarithm, mean 0 over the methods, and its 95 % interval."""

    dataset: str
    method: str
    rank: int
    strength: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Everything that a study tells.

    Attributes:
        answers: all answers, in the order of readers and trials.
        shares: by challenge, data set ("all" last) and method.
        ranks: Bradley–Terry ranks from the quality challenge, by data set.
        between: Fleiss' kappa between readers by challenge, and over how many items; None without enough answers.
        within: Cohen's kappa of each reader (and "all") between first and second answers, by challenge, and their
            number and how many agreed.
        readers: by reader: answers, missed ones, median seconds.
    """

    answers: tuple[Answer, ...]
    shares: tuple[Share, ...]
    ranks: tuple[Rank, ...]
    between: Mapping[str, Mapping[str, float | int | None]]
    within: Mapping[str, Mapping[str, Mapping[str, float | int | None]]]
    readers: Mapping[str, Mapping[str, float | int | None]]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single answers, ready for JSON."""
        content = asdict(self)
        del content["answers"]
        return content


def scored(study: Study, events: Mapping[tuple[str, int], Event]) -> Scores:
    """Score the answers to a study; ``events`` holds the answer to each (reader, trial).

    Raises:
        InputError: there is no answer that counts, or statsmodels is missing.
    """
    answers = tuple(keyed_answers(study, events))
    if not any(answer.counts and not answer.missed for answer in answers):
        raise InputError("the study has no answer that counts yet", "readers answer by the links of kin study serve")
    shares = [share for challenge in study.challenges for share in _shares(study, answers, challenge)]
    return Scores(
        answers=answers,
        shares=tuple(_corrected(shares)),
        ranks=tuple(
            rank for name in _datasets(study, answers, "quality") for rank in _ranks(answers, study.methods, name)
        ),
        between={challenge: _between(answers, challenge) for challenge in study.challenges},
        within={challenge: _within(answers, challenge) for challenge in study.challenges},
        readers={reader.name: _reader(reader.name, answers) for reader in study.readers},
    )


def keyed_answers(study: Study, events: Mapping[tuple[str, int], Event]) -> Iterable[Answer]:
    """Every answer with its key."""
    for reader in study.readers:
        for number, trial in enumerate(reader.trials):
            event = events.get((reader.name, number))
            if event is None:
                continue
            item = study.items[trial.item]
            method = next((name for name in trial.slots if name != REFERENCE), None)
            yield Answer(
                reader=reader.name,
                trial=number,
                challenge=trial.challenge,
                item=item.name,
                dataset=item.dataset,
                method=method if trial.challenge == "fidelity" else None,
                shown=trial.slots,
                chosen=None if event.missed or event.choice is None else trial.slots[event.choice],
                missed=event.missed,
                seconds=None if event.missed else event.seconds,
                practice=trial.practice,
                repeat_of=trial.repeat_of,
                at=event.at,
            )


def _datasets(study: Study, answers: Sequence[Answer], challenge: str) -> list[str]:
    """The data sets with answers, in the order of the items, and "all" if there are several."""
    found = {a.dataset for a in answers if a.counts and a.challenge == challenge}
    names = [name for name in dict.fromkeys(item.dataset for item in study.items) if name in found]
    return names if names == [_ALL] or not names else [*names, _ALL]


def _shares(study: Study, answers: Sequence[Answer], challenge: str) -> list[Share]:
    """Shares of a challenge by data set and method, not yet corrected."""
    found = []
    for dataset in _datasets(study, answers, challenge):
        inside = [a for a in answers if a.counts and a.challenge == challenge and dataset in (a.dataset, _ALL)]
        for method in study.methods:
            about = [a for a in inside if (method in a.shown if challenge == "quality" else a.method == method)]
            if about:
                found.append(_share(about, challenge, dataset, method))
    return found


def _corrected(shares: Sequence[Share]) -> list[Share]:
    """The shares with p-values corrected over the whole study: of studies by guesses 5 % have one below 0.05."""
    corrected = iter(holm([share.p for share in shares if share.p is not None]))
    return [share if share.p is None else replace(share, p_holm=next(corrected)) for share in shares]


def _share(about: Sequence[Answer], challenge: str, dataset: str, method: str) -> Share:
    given = [a for a in about if not a.missed]
    chosen = sum(a.chosen == method for a in given)
    chance = float(np.mean([1 / len(a.shown) for a in about]))
    test = binomtest(chosen, len(given), chance) if given else None
    interval = None if test is None else test.proportion_ci(_CONFIDENCE, method="exact")
    return Share(
        challenge=challenge,
        dataset=dataset,
        method=method,
        chosen=chosen,
        of=len(given),
        missed=len(about) - len(given),
        share=chosen / len(given) if given else None,
        low=None if interval is None else float(interval.low),
        high=None if interval is None else float(interval.high),
        chance=chance,
        p=None if test is None else float(test.pvalue),
        p_holm=None,
        seconds=median_seconds(given),
    )


def median_seconds(answers: Iterable[Answer]) -> float | None:
    """Median time of the answers that were not missed; None if there is none."""
    seconds = [a.seconds for a in answers if a.seconds is not None]
    return float(np.median(seconds)) if seconds else None


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction, in the same order."""
    if not p_values:
        return []
    multipletests = _statsmodels("stats.multitest").multipletests
    return [float(value) for value in multipletests(p_values, method="holm")[1]]


def _ranks(answers: Sequence[Answer], methods: Sequence[str], dataset: str) -> list[Rank]:
    """Bradley–Terry strengths from choices of the best: the chosen method wins over every other that was shown."""
    inside = [a for a in answers if a.counts and a.challenge == "quality" and a.chosen and dataset in (a.dataset, _ALL)]
    shown = [method for method in methods if any(method in a.shown for a in inside)]
    if len(shown) < 2:
        return []
    wins = np.zeros((len(shown), len(shown)))
    for a in inside:
        for other in a.shown:
            if other != a.chosen:
                wins[shown.index(str(a.chosen)), shown.index(other)] += 1
    strengths, errors = bradley_terry(wins)
    order = np.argsort(-strengths)
    return [
        Rank(
            dataset,
            shown[place],
            rank,
            float(strengths[place]),
            float(strengths[place] - 1.96 * errors[place]),
            float(strengths[place] + 1.96 * errors[place]),
        )
        for rank, place in enumerate(order, start=1)
    ]


def bradley_terry(wins: Doubles) -> tuple[Doubles, Doubles]:
    """Strengths (n,) of the model of Bradley and Terry (1952) and their standard errors, by logistic regression.

    ``wins`` (n, n) counts how often i won over j. P(i over j) = 1 / (1 + exp(strength j − strength i)); the strengths
    have mean 0. Half a win is added for each side of every pair that met, so that all strengths are finite.
    """
    api = _statsmodels("api")
    count = len(wins)
    rows, won, lost = [], [], []
    for i in range(count):
        for j in range(i + 1, count):
            if wins[i, j] + wins[j, i] > 0:
                row = np.zeros(count)
                row[i], row[j] = 1, -1
                rows.append(row)
                won.append(wins[i, j] + _PSEUDO_WINS)
                lost.append(wins[j, i] + _PSEUDO_WINS)
    # contrasts to the mean: the last strength is minus the sum of the others
    free = np.vstack([np.eye(count - 1), -np.ones(count - 1)])
    design = np.array(rows) @ free
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two methods are fitted perfectly, which is no fault
        fitted = api.GLM(np.column_stack([won, lost]), design, family=api.families.Binomial()).fit()
    strengths = free @ np.asarray(fitted.params)
    covariance = free @ np.asarray(fitted.cov_params()) @ free.T
    return strengths, np.sqrt(np.diag(covariance))


def _between(answers: Sequence[Answer], challenge: str) -> dict[str, float | int | None]:
    """Fleiss' kappa over the questions that every reader with answers has answered."""
    counted = [a for a in answers if a.counts and a.challenge == challenge and not a.missed]
    readers = {a.reader for a in counted}
    questions: dict[tuple[str, str | None], dict[str, str]] = {}
    for a in counted:
        questions.setdefault((a.item, a.method), {})[a.reader] = "real" if a.chosen == REFERENCE else str(a.chosen)
    complete = [list(given.values()) for given in questions.values() if len(given) == len(readers)]
    return {"kappa": fleiss(complete), "questions": len(complete), "readers": len(readers)}


def fleiss(ratings: Sequence[Sequence[str]]) -> float | None:
    """Fleiss' kappa (1971) of subjects that each have a rating of every reader; None if it is not defined."""
    if not ratings or len(ratings[0]) < 2:
        return None
    names = sorted({name for row in ratings for name in row})
    table = np.array([[row.count(name) for name in names] for row in ratings])
    if len(names) < 2:
        return None  # all readers said the same of all subjects: agreement by chance is complete
    return float(_statsmodels("stats.inter_rater").fleiss_kappa(table))


def _within(answers: Sequence[Answer], challenge: str) -> dict[str, dict[str, float | int | None]]:
    """Cohen's kappa between first and second answers of each reader, and of all together."""
    by_trial = {(a.reader, a.trial): a for a in answers}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for a in answers:
        if a.challenge != challenge or a.repeat_of is None:
            continue
        first = by_trial.get((a.reader, a.repeat_of))
        if first is not None and first.chosen is not None and a.chosen is not None:
            pairs.setdefault(a.reader, []).append((_said(first), _said(a)))
            pairs.setdefault(_ALL, []).append((_said(first), _said(a)))
    return {
        name: {"kappa": cohen(found), "pairs": len(found), "same": sum(one == other for one, other in found)}
        for name, found in sorted(pairs.items(), key=lambda entry: (entry[0] == _ALL, entry[0]))
    }


def _said(answer: Answer) -> str:
    return (
        "real" if answer.chosen == REFERENCE else "translated" if answer.challenge == "fidelity" else str(answer.chosen)
    )


def cohen(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa (1960) of pairs of answers; None if it is not defined."""
    names = sorted({name for pair in pairs for name in pair})
    if len(names) < 2:
        return None
    table = Counter(pairs)
    counts = np.array([[table[one, other] for other in names] for one in names])
    return float(_statsmodels("stats.inter_rater").cohens_kappa(counts, return_results=False))


def _reader(name: str, answers: Sequence[Answer]) -> dict[str, float | int | None]:
    own = [a for a in answers if a.reader == name and not a.practice]
    return {
        "answers": sum(not a.missed for a in own),
        "missed": sum(a.missed for a in own),
        "seconds": median_seconds(own),
    }


def _statsmodels(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"statsmodels.{name}")
    except ImportError:
        raise InputError("scores need statsmodels, which is not installed", _NEEDED) from None
