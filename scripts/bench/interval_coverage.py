"""How often do the printed 95 % intervals hold the truth? The table of docs/explanation/honest-numbers.md.

Run: python scripts/bench/interval_coverage.py [--repeats 400] [--clusters 5] [--only 200/20000]
Scores are drawn from two normal distributions 2.5 sigma apart, so that the truth of every metric is an integral.
"Before" is the percentile bootstrap over rows (Wilson's interval at the operating point) that printed every
number. With --clusters, rows come in groups of so many that share a quarter of the variance of their scores, as
rows of one cell of the sky share PSF and background. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from ripple.learn.evaluation import metrics
from ripple.learn.evaluation.evaluate import Sky, evaluate
from ripple.learn.evaluation.intervals import bootstrap_limits, mean_estimate, score_limits

Float = NDArray[np.float64]
#: Distance of the two classes in units of their scatter: an AUROC of 0.961.
APART = 2.5
#: Lenses and non-lenses of the test sets of the issue: a demo, a survey field, the benchmark's sky.
SIZES = ((27, 137), (200, 2000), (200, 20000))
THRESHOLD = 2.0  # an FPR of 0.023
SHARED = 0.25  # variance that the rows of a cluster share


def tpr_of(threshold: float) -> float:
    """True positive rate above a threshold."""
    return float(norm.sf(threshold - APART))


def posterior(score: Float, prevalence: float) -> Float:
    """Probability of being a lens: perfectly calibrated at the mix of the rows."""
    odds = prevalence / (1 - prevalence) * np.exp(APART * score - APART**2 / 2)
    return np.asarray(odds / (1 + odds))


def truths(lenses: int, others: int, sky: Sky) -> dict[str, float]:
    """The value of each metric in an infinite set of the same mix."""
    share = lenses / (lenses + others)
    grid = np.linspace(-9, 12, 200_001)  # thresholds, rising
    tpr, fpr = norm.sf(grid - APART), norm.sf(grid)
    precision = share * tpr / (share * tpr + (1 - share) * fpr)
    f = (1 + metrics.BETA2) * precision * tpr / (metrics.BETA2 * precision + tpr)
    p = posterior(grid, share)
    density = share * norm.pdf(grid - APART) * (1 - p) ** 2 + (1 - share) * norm.pdf(grid) * p**2
    found = {
        "auroc": float(norm.cdf(APART / np.sqrt(2))),
        "pr_auc": float(np.sum(-np.diff(tpr) * precision[:-1])),
        "f_beta": float(f.max()),
        "tpr_at_threshold": tpr_of(THRESHOLD),
        "fpr_at_threshold": float(norm.sf(THRESHOLD)),
        "false_per_deg2_at_threshold": sky.sources * float(norm.sf(THRESHOLD)),
        "brier": float(np.sum(density) * (grid[1] - grid[0])),
    }
    selected = sky.lenses * found["tpr_at_threshold"]
    found["purity_at_threshold"] = selected / (selected + found["false_per_deg2_at_threshold"])
    for limit in metrics.FPRS:
        found[f"tpr_at_fpr_{limit:.0e}".replace("e-0", "e-")] = tpr_of(float(norm.isf(limit)))
    for count in sky.candidates:

        def excess(t: float, count: float = count) -> float:
            return sky.lenses * tpr_of(t) + sky.sources * float(norm.sf(t)) - count

        completeness = tpr_of(brentq(excess, -9, 12))
        found[f"completeness_at_{count:g}_per_deg2"] = completeness
        found[f"purity_at_{count:g}_per_deg2"] = sky.lenses * completeness / count
    return found


@dataclass(frozen=True)
class Set:
    """One simulated test set."""

    label: NDArray[np.int64]
    score: Float
    block: NDArray[np.int64]
    probability: Float

    def truths(self, fixed: dict[str, float]) -> dict[str, float]:
        """With those metrics that are about the highest non-lenses of this very set."""
        highest = np.sort(self.score[self.label == 0])[::-1]
        return fixed | {"tpr0": tpr_of(highest[0]), "tpr10": tpr_of(highest[9])}


def simulate(lenses: int, others: int, cluster: int, rng: np.random.Generator) -> Set:
    """Rows with scores of unit scatter around 0 and APART, in clusters of that many rows."""
    n = lenses + others
    label = rng.permutation(np.repeat([1, 0], [lenses, others]))
    block = np.arange(n) // cluster
    shared = SHARED if cluster > 1 else 0.0
    noise = np.sqrt(shared) * rng.normal(size=n)[block] + np.sqrt(1 - shared) * rng.normal(size=n)
    score = noise + APART * label
    return Set(label, score, block, posterior(score, lenses / n))


def before(data: Set, sky: Sky, draws: int, seed: int) -> dict[str, tuple[float, float]]:
    """The intervals that were printed until now: rows drawn one by one, percentiles of every metric."""
    known: dict[str, Callable[[metrics.Curve], float]] = {
        "auroc": metrics.auroc,
        "pr_auc": metrics.pr_auc,
        "tpr0": metrics.tpr0,
        "tpr10": metrics.tpr10,
        "f_beta": metrics.f_beta,
    }
    for fpr in metrics.FPRS:
        known[f"tpr_at_fpr_{fpr:.0e}".replace("e-0", "e-")] = lambda c, f=fpr: metrics.tpr_at_fpr(c, f)
    for n in sky.candidates:
        for k, name in enumerate(("purity", "completeness")):
            known[f"{name}_at_{n:g}_per_deg2"] = lambda c, n=n, k=k: metrics.at_density(
                c, n, lenses=sky.lenses, sources=sky.sources
            )[k]
    found = bootstrap_limits(data.label, data.score, known, draws=draws, seed=seed)
    table = metrics.confusion(data.label, data.score, THRESHOLD)
    for name, (hit, miss) in {"tpr": ("tp", "fn"), "fpr": ("fp", "tn")}.items():
        rows = table[hit] + table[miss]  # type: ignore[literal-required]
        found[f"{name}_at_threshold"] = score_limits(table[hit] / rows, rows)  # type: ignore[literal-required]
    brier = mean_estimate((data.probability - data.label) ** 2, None, draws=draws, seed=seed)
    return found | {"brier": (brier.low, brier.high)}


def main() -> None:
    """Simulate, count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--clusters", type=int, default=1)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    sky = Sky()
    sizes = [size for size in SIZES if args.only in ("", f"{size[0]}/{size[1]}")]
    held: dict[str, dict[tuple[int, int], list[tuple[float, float]]]] = defaultdict(dict)
    for size in sizes:
        fixed = truths(*size, sky)
        counts: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for seed in range(args.repeats):
            data = simulate(*size, args.clusters, np.random.default_rng([seed, *size]))
            truth = data.truths(fixed)
            old = before(data, sky, args.draws, seed)
            new = evaluate(
                data.label, data.score, data.probability, threshold=THRESHOLD, block=data.block,
                draws=args.draws, seed=seed,
            )["metrics"]  # fmt: skip
            for name, value in truth.items():
                low, high = old.get(name, (np.nan, np.nan))
                was = float(low <= value <= high) if np.isfinite(low) else np.nan
                entry = new[name]
                inside = "low" in entry and entry["low"] - 1e-6 <= value <= entry["high"] + 1e-6
                now = np.nan if entry["value"] is None else float(inside)
                counts[name].append((was, now))
        for name, found in counts.items():
            held[name][size] = found
    print("| number | " + " | ".join(f"{a}/{b:,} before | now" for a, b in sizes) + " |")
    print("|---" * (2 * len(sizes) + 1) + "|")
    for name in held:
        cells = []
        for size in sizes:
            was, now = np.array(held[name][size]).T
            printed = np.isfinite(now)
            cells.append("–" if np.isnan(was).all() else f"{100 * np.nanmean(was):.0f} %")
            share = f"{100 * now[printed].mean():.0f} %" if printed.any() else "not resolved"
            # A number may be printed only for some of the sets: those that resolve it.
            cells.append(share if printed.all() or not printed.any() else f"{share} of {printed.mean():.0%}")
        print(f"| `{name}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
