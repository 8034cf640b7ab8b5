"""The tables and floors of the bench of models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.models.measure import DENSE, METHODS, OURS, RIVALS, ModelResult
from bench.tables import Table

# (subject, metric, level): the least, or the most, that is asked, as a function of the dense model's.
FLOORS = {
    ("digits", "accuracy", "80 %"): lambda dense: dense - 0.2,
    ("digits", "accuracy", "90 %"): lambda dense: dense - 0.7,
    ("digits", "accuracy", "95 %"): lambda dense: dense - 3.0,
    ("crepe", "pitch agreement", "80 %"): lambda dense: 99.0,
    ("crepe", "pitch agreement", "90 %"): lambda dense: 97.0,
    ("minilm", "Lee Pearson", "50 %"): lambda dense: dense - 0.02,
    ("minilm", "Lee Pearson", "70 %"): lambda dense: dense - 0.04,
    ("minilm", "Lee Pearson", "2:4"): lambda dense: dense - 0.03,
    ("forecaster", "sMAPE", "90 %"): lambda dense: 1.05 * dense,
}


def tables(results: Iterable[ModelResult]) -> list[Table]:
    """Return a table of metrics for every subject, one of floors, one of times."""
    results = list(results)
    subjects = list(dict.fromkeys(result.subject for result in results))
    return [*(_metrics(subject, results) for subject in subjects), _floors(results), _times(subjects, results)]


def _metrics(subject: str, results: Sequence[ModelResult]) -> Table:
    of = {(r.level, r.method): r for r in results if r.subject == subject}
    dense = of[DENSE, DENSE]
    levels = list(dict.fromkeys(level for level, _ in of if level != DENSE))
    rows = []
    for method in (m for m in METHODS if any((level, m) in of for level in levels)):
        cells = [_figure(of[level, method].metrics[dense.primary]) if (level, method) in of else "" for level in levels]
        rows.append((method, *cells))
    title = f"{subject}: {dense.primary}; dense {_figure(dense.metrics[dense.primary])}"
    others = [name for name in dense.metrics if name != dense.primary]
    for name in others:
        for method in (m for m in METHODS if any((level, m) in of for level in levels)):
            cells = [_figure(of[level, method].metrics[name]) if (level, method) in of else "" for level in levels]
            rows.append((f"{method}: {name}", *cells))
    return Table(title, ("", *levels), rows)


def _floors(results: Sequence[ModelResult]) -> Table:
    rows = []
    of = {r.key: r for r in results}
    for subject, level in dict.fromkeys((r.subject, r.level) for r in results if r.level != DENSE):
        dense = of[subject, DENSE, DENSE]
        ours = of.get((subject, level, "sisopt")) or of.get((subject, level, "sisopt, fast"))
        if ours is None:
            continue
        kind_of_ours = "" if ours.method == "sisopt" else f" ({ours.method.split(', ')[1]})"
        for (kind, metric, at), floor in FLOORS.items():
            if subject.startswith(kind) and at == level:
                asked, found = floor(dense.metrics[metric]), ours.metrics[metric]
                holds = found >= asked if metric != "sMAPE" else found <= asked
                sign = ">=" if metric != "sMAPE" else "<="
                shown = _figure(found) + kind_of_ours
                rows.append((f"{subject}, {level}: {metric}", f"{sign} {_figure(asked)}", shown, _word(holds)))
        rivals = {m: of[subject, level, m].metrics[ours.primary] for m in RIVALS if (subject, level, m) in of}
        if rivals:
            best = (max if ours.higher_is_better else min)(rivals, key=rivals.__getitem__)
            found = ours.metrics[ours.primary]
            holds = found > rivals[best] if ours.higher_is_better else found < rivals[best]
            asked = f"{'>' if ours.higher_is_better else '<'} {_figure(rivals[best])} ({best})"
            shown = _figure(found) + kind_of_ours
            rows.append((f"{subject}, {level}: {ours.primary}, best rival", asked, shown, _word(holds)))
    return Table("Floors", ("", "asked", "sisopt", "verdict"), rows, (0, 1, 3))


def _times(subjects: Sequence[str], results: Sequence[ModelResult]) -> Table:
    rows = []
    for subject in subjects:
        spans = []
        for method in ("ALPS", *OURS):
            seconds = [r.seconds for r in results if r.subject == subject and r.method == method]
            ends = dict.fromkeys(f"{each(seconds):.0f}" for each in (min, max)) if seconds else ()
            spans.append(" to ".join(ends))
        rows.append((subject, *spans))
    return Table("Seconds for a model", ("", "ALPS", *OURS), rows)


def _figure(value: float) -> str:
    return f"{value:.2f}" if value == 0 or abs(value) > 2 else f"{value:.4f}"


def _word(holds: bool) -> str:
    return "met" if holds else "MISSED"
