"""Which setting of a notebook is better, and whether the difference is more than chance.

Runs with the same parameters apart from the seed are repeats of one **setting**. For each metric
the setting with the best mean is compared with all the others.

The method is Tukey's: the best of k settings is picked after looking, so its lead over any other
is judged by the studentized range, the distribution of the largest difference among k equal
means. The intervals of all k(k-1)/2 differences then hold together, whichever pair is looked at
(Tukey 1953; Kramer 1956 for unequal numbers of repeats; Hochberg and Tamhane 1987, chapter 3).
With two settings it is the t-test. Several metrics on a page share the error by Bonferroni.

Where at least two seeds are common to all settings, the comparison is over these seeds, and the
seed is a block: what a seed does to every setting alike is removed, and the residual variance has
(k-1)(n-1) degrees of freedom (Scheffé 1959, chapter 4). With two settings that is the paired
t-test. Otherwise all runs count as independent.

One variance is estimated from all settings, which is what makes few seeds enough. It is wrong
where one setting scatters far more than the others, as a learning rate that diverges does. So where
Bartlett's test rejects equal variances, a pair is judged by its own variance (as Games and Howell
1976 do, with the degrees of freedom of the smaller sample) if that makes the interval wider.
Without any spread between seeds nothing can be judged, and nothing is marked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from llmnb.runs.records import number_text

ERROR_RATE = 0.05  # the share of pages that show a difference although there is none
UNEQUAL_VARIANCES_LEVEL = 0.005  # of Bartlett's test
RELATIVE_ROUNDING = 1e-9  # a spread smaller than this fraction of the values counts as rounding
Values = Mapping[str, Mapping[str, float]]  # of a metric: by setting, then by seed


@dataclass(frozen=True)
class Lead:
    """How far the best setting is ahead of another; positive whichever direction is better."""

    difference: float
    low: float
    high: float

    @property
    def is_shown(self) -> bool:
        """Whether it is more than chance. An interval without width comes from no spread."""
        return self.high > self.low > 0


@dataclass(frozen=True)
class Comparison:
    """A metric's settings, compared."""

    best: str
    leads: dict[str, Lead]  # of the best over each of the others, the closest first
    repeats: tuple[int, int]  # the fewest and the most that a setting has
    is_paired: bool
    n_left_out: int  # runs with seeds that not all settings have

    @property
    def beaten(self) -> list[str]:
        """The settings that the best one is better than."""
        return [name for name, lead in self.leads.items() if lead.is_shown]


def is_constant(values: Iterable[float]) -> bool:
    """Whether the values differ by rounding at most."""
    ordered = sorted(values)
    scale = max(abs(ordered[0]), abs(ordered[-1]))
    return ordered[-1] - ordered[0] <= RELATIVE_ROUNDING * scale


def is_comparable(values: Values) -> bool:
    """Whether two settings have repeats, and not all values are the same."""
    if not values or is_constant(v for by_seed in values.values() for v in by_seed.values()):
        return False
    return sum(len(by_seed) > 1 for by_seed in values.values()) > 1


def compare(values: Values, better: str, level: float = ERROR_RATE) -> Comparison | None:
    """The best setting against the others, by the method above.

    None without two settings that have repeats.

    better: "higher" or "lower". level: the chance of any false difference in this comparison.
    """
    repeated = {name: by_seed for name, by_seed in values.items() if len(by_seed) > 1}
    if len(repeated) < 2:
        return None
    sign = 1.0 if better == "higher" else -1.0
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in repeated.values())))
    is_paired = len(shared) > 1
    samples = []
    for by_seed in repeated.values():
        seeds = shared if is_paired else list(by_seed)
        samples.append(sign * np.array([by_seed[seed] for seed in seeds]))
    means = np.array([sample.mean() for sample in samples])
    best = int(means.argmax())
    margins = _margins(samples, best, is_paired, level)
    names = list(repeated)
    leads = {}
    for other in np.argsort(-means, kind="stable"):
        if other != best:
            lead = float(means[best] - means[other])
            leads[names[other]] = Lead(lead, lead - margins[other], lead + margins[other])
    sizes = [len(sample) for sample in samples]
    n_left_out = sum(map(len, values.values())) - sum(sizes)
    return Comparison(names[best], leads, (min(sizes), max(sizes)), is_paired, n_left_out)


def sentence(comparison: Comparison, unit: str = "") -> str:
    """What the comparison says: which setting beats which by how much, or that none does."""
    best, leads, beaten = comparison.best, comparison.leads, comparison.beaten
    closest = next(iter(leads))
    fewest, most = comparison.repeats
    number = str(most) if fewest == most else f"{fewest} to {most}"
    repeats = f"over {number} {'seeds' if comparison.is_paired else 'runs each'}"
    if all(lead.low == lead.high for lead in leads.values()):
        return f"The difference is the same {repeats}, so chance can't be judged."
    if not beaten:
        lead = _lead_text(leads[closest], unit)
        others = f"the best, {best}, leads {closest} by {lead}"
        return f"No difference shown: {others} {repeats}."
    others = f"{'all' if len(beaten) == len(leads) else f'{len(beaten)} of'} {len(leads)} others, "
    lead = _lead_text(leads[beaten[0]], unit)
    text = f"{best} beats {others if len(leads) > 1 else ''}{beaten[0]} by {lead} {repeats}"
    equals = [name for name in leads if name not in beaten]
    if not equals:
        return f"{text}."
    more = f" and {len(equals) - 1} more" if len(equals) > 1 else ""
    return f"{text}; no difference shown to {equals[0]}{more}."


def with_interval(value: float, low: float, high: float) -> str:
    """A value and its interval, to two digits of the interval's half: 0.912 [0.887, 0.937].

    Without width there is no interval.
    """
    if low == high:
        return number_text(value)
    margin = max(high - value, value - low)
    if not 1e-6 < margin < 1e4:
        return f"{number_text(value)} [{number_text(low)}, {number_text(high)}]"
    decimals = max(0, 1 - math.floor(math.log10(margin)))
    return f"{value:,.{decimals}f} [{low:,.{decimals}f}, {high:,.{decimals}f}]"


def _lead_text(lead: Lead, unit: str) -> str:
    number, interval = with_interval(lead.difference, lead.low, lead.high).split(" ", 1)
    return f"{number}{' ' if unit else ''}{unit} {interval}"


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """The mean of repeats and its 95 % interval by Student's t; without width where none differ."""
    if len(values) < 2 or is_constant(values):
        return values[0], values[0], values[0]
    mean = float(np.mean(values))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    margin = float(_quantile(2, len(values) - 1, ERROR_RATE) * error)
    return mean, mean - margin, mean + margin


def _margins(samples: list, best: int, is_paired: bool, level: float) -> list[float]:
    """Half the width of the interval of each setting's difference to the best one."""
    from scipy.stats import bartlett, sem

    k = len(samples)
    n = np.array([len(sample) for sample in samples])
    residuals = spreads = [sample - sample.mean() for sample in samples]
    df = int(n.sum()) - k
    if is_paired:
        # One wild setting shifts the seeds' means, but not their medians.
        spreads = [residual - np.median(residuals, axis=0) for residual in residuals]
        residuals = [residual - np.mean(residuals, axis=0) for residual in residuals]
        df = (k - 1) * (int(n[0]) - 1)
    variance = sum(float(residual @ residual) for residual in residuals) / df
    if variance <= (RELATIVE_ROUNDING * np.abs(np.concatenate(samples)).max()) ** 2:
        return [0.0] * k
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a setting without any spread has an infinite log
        is_one_wild = bartlett(*spreads).pvalue < UNEQUAL_VARIANCES_LEVEL
    margins = []
    for other in range(k):
        margin = _quantile(k, df, level) * np.sqrt(variance * (1 / n[best] + 1 / n[other]))
        if is_one_wild:
            error = math.hypot(sem(samples[best]), sem(samples[other]))
            if is_paired:
                error = sem(samples[best] - samples[other])
            own_df = int(min(n[best], n[other])) - 1
            margin = max(margin, _quantile(k, own_df, level) * error)
        margins.append(float(margin))
    return margins


@cache
def _quantile(k: int, df: int, level: float) -> float:
    """How many standard errors the difference of two of k means may have by chance."""
    from scipy.stats import studentized_range, t

    if k == 2:
        return float(t.ppf(1 - level / 2, df))
    return float(studentized_range.ppf(1 - level, k, df) / np.sqrt(2))
