"""The page about candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.report.cards import Table, Tile, data_uri, render
from ripple.report.plots import Line, line_plot
from ripple.stages.consensus.panel import Panel
from ripple.vetting.agreement import alpha, kappas, offsets
from ripple.vetting.consensus import SCALE, Fused, calibration_error
from ripple.vetting.session import Session

Float = NDArray[np.float64]


def page(
    sessions: Sequence[Session], panel: Panel, fused: Fused, candidates: pa.Table, shown: NDArray[np.int64],
    digest: str, inputs: str,
) -> bytes:  # fmt: skip
    """`index.html`.

    Parameters
    ----------
    sessions, panel, fused
        What was graded, by whom, and what it says.
    candidates
        Best first.
    shown
        Objects of `panel` behind the first rows of `candidates`.
    digest, inputs
        Short name of the content, and where it comes from.
    """
    drawn = {k: s.pictures(8.0, 8.0) for k, s in enumerate(sessions)}
    ids, text = (
        candidates["id"].to_pylist(),
        [candidates[c].to_pylist() for c in ("probability", "low", "high", "grades")],
    )
    pictures = [
        {
            "source": data_uri(drawn[int(panel.place[at, 0])].rgb(int(panel.place[at, 1]), "default")),
            "name": f"{n + 1}. {ids[n]}",
            "note": f"{text[0][n]:.3f} ({text[1][n]:.2f} to {text[2][n]:.2f}); {text[3][n]}",
        }
        for n, at in enumerate(shown.tolist())
    ]
    tests = panel.truth[panel.tests]
    return render(
        "explain.html.j2",
        title="Candidates", digest=digest, lead=_lead(panel, candidates.num_rows),
        facts=tiles(panel, fused, tests),
        pictures=pictures, pictures_title="Best candidates",
        pictures_note="Probability of a lens, 95 % interval, and grades. The stretch is the same for all.",
        plots=[reliability(fused, tests)] if len(tests) >= FEW_TESTS else [], plots_title="Calibration",
        plots_note=calibration_note(fused, tests), neighbours=[], neighbours_note="",
        tables=[graders_table(panel, fused), kappa_table(panel)],
        links=[{"name": name, "note": note} for name, note in LINKS], provenance=[inputs],
    )  # fmt: skip


#: With fewer, a calibration error would be a matter of chance.
FEW_TESTS = 20
LINKS = (
    ("candidates.csv", "candidates.csv: all candidates"),
    ("candidates.parquet", "candidates.parquet: the same with exact numbers"),
    ("candidates.fits", "candidates.fits: FITS table"),
    ("candidates.vot", "candidates.vot: VOTable"),
    ("candidates.reg", "candidates.reg: regions for DS9 and Aladin"),
    ("second-round.csv", "second-round.csv: what to look at again"),
    ("graders.csv", "graders.csv: the table of graders"),
    ("tests.csv", "tests.csv: the hidden tests and what was said about them"),
)


def _lead(panel: Panel, candidates: int) -> str:
    grades = int((panel.level >= 0).sum())
    return f"{candidates:,} candidates, {grades:,} grades by {len(panel.graders)} people."


def tiles(panel: Panel, fused: Fused, tests: NDArray[np.int8]) -> list[Tile]:
    """Numbers at the head of the page."""
    lenses = int((tests == 1).sum())
    return [
        Tile("share of lenses", f"{fused.share:.3f}", "estimated among the candidates"),
        Tile("hidden tests", f"{len(tests):,}", f"{lenses:,} lenses, {len(tests) - lenses:,} others"),
        Tile("Krippendorff's alpha", _number(alpha(panel.level)), "1 is full agreement, 0 none"),
        Tile(
            "calibration error",
            _number(calibration_error(fused.held_out, tests)),
            "on hidden tests, held out",
        ),
    ]


def calibration_note(fused: Fused, tests: NDArray[np.int8]) -> str:
    """What was done about graders who err together, and how well it worked."""
    if not len(tests):
        return (
            "There are no hidden tests: these probabilities are not calibrated, and too near to 0 and 1 "
            "where graders err on the same objects."
        )
    if len(tests) < FEW_TESTS:
        return (
            f"Only {len(tests)} hidden tests were graded: these probabilities are hardly corrected for "
            "graders who err on the same objects, and how well they hold cannot be said."
        )
    before, after = (calibration_error(p, tests) for p in (fused.uncorrected, fused.held_out))
    return (
        "Graders err on the same objects, so the logarithm of what they say together counts "
        f"{fused.slope:.2f} times. On hidden tests that were left out, the calibration error is {before:.3f} "
        f"without that and {after:.3f} with it ({len(tests):,} tests)."
    )


def reliability(fused: Fused, tests: NDArray[np.int8]) -> str:
    """Share of lenses against probability on tests that were left out."""
    order = np.argsort(fused.held_out, kind="stable")
    parts = np.array_split(order, min(8, len(order) // 5))
    x, y = [fused.held_out[p].mean() for p in parts], [tests[p].mean() for p in parts]
    lines = [Line([0, 1], [0, 1], "perfect", "faint"), Line(x, y, "hidden tests, held out")]
    return line_plot("Calibration", "probability", "share of lenses", lines, x_range=(0, 1), y_range=(0, 1))


def graders_table(panel: Panel, fused: Fused) -> Table:
    """One line per grader."""
    head = ("grader", "grades", "s per object", "offset", "same at second look", "lenses graded A B C X",
            "others graded A B C X", "finds", "false alarms")  # fmt: skip
    note = (
        "Offset: how much higher than the others on the same objects, in grades. Finds and false alarms: "
        "probability of C or better for a lens and for another object, with 95 % intervals."
    )
    return Table("Graders", head, tuple(tuple(row.values()) for row in graders(panel, fused)), note=note)


def graders(panel: Panel, fused: Fused) -> list[dict[str, str]]:
    """What is known about each grader, as text."""
    offset = offsets(panel.level)
    rows = []
    for j, name in enumerate(panel.graders):
        level, again = panel.level[:, j], panel.again[:, j]
        twice = (level >= 0) & (again >= 0)
        same = f"{int((level == again)[twice].sum())} of {int(twice.sum())}" if twice.any() else ""
        seen = [np.bincount(level[(panel.truth == z) & (level >= 0)], minlength=4)[::-1] for z in (1, 0)]
        finds, alarms = (_at_least_c(fused.counts[j, z]) for z in (1, 0))
        rows.append({
            "grader": name, "grades": f"{int((level >= 0).sum()):,}", "seconds": _number(panel.seconds[j], 1),
            "offset": _number(offset[j], 2), "same": same,
            "lenses": " ".join(map(str, seen[0])), "others": " ".join(map(str, seen[1])),
            "finds": finds, "false_alarms": alarms,
        })  # fmt: skip
    return rows


def _at_least_c(counts: Float) -> str:
    """Probability of a grade above X, of its Dirichlet distribution, with its 95 % interval."""
    from scipy.stats import beta

    of = beta(counts[1:].sum(), counts[0])
    return f"{of.mean():.2f} ({of.ppf(0.025):.2f}–{of.ppf(0.975):.2f})"


def kappa_table(panel: Panel) -> Table:
    """Weighted kappa of each pair."""
    found = kappas(panel.level)
    rows = tuple(
        (name, *("" if i == j else _number(found[i, j]) for j in range(len(panel.graders))))
        for i, name in enumerate(panel.graders)
    )
    return Table("Agreement of pairs", ("grader", *panel.graders), rows,
                 note="Cohen's kappa with quadratic weights, on the objects that both graded.")  # fmt: skip


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def grades_text(panel: Panel, at: int) -> str:
    """As `ann A, bob X`."""
    said = [(g, panel.level[at, j]) for j, g in enumerate(panel.graders) if panel.level[at, j] >= 0]
    return ", ".join(f"{name} {SCALE[level]}" for name, level in said)
