"""One sentence over all runs, and the table of what each model is worth."""

from __future__ import annotations

from collections.abc import Sequence

from nncompress.report.facts.content import Outcome, Report, Section
from nncompress.report.facts.shown import shown
from nncompress.results import Estimate

# The command whose evidence counts most, first: a promise, then measured speed, then accuracy, then costs.
EVIDENCE = ("optimize", "bench", "eval", "train", "cycle", "sensitivity", "inspect")


def report(sections: Sequence[Section]) -> Report:
    """All runs as one report; there is at least one."""
    best = min(sections, key=_rank)
    outcomes = tuple(outcome for section in sections for outcome in section.outcomes)
    summary = sentence(best.outcomes[-1]) if best.outcomes and best.command != "optimize" else best.summary
    title = best.outcomes[-1].model if best.outcomes else best.source
    return Report(title, summary, outcomes, tuple(sections))


def _rank(section: Section) -> int:
    if section.command in EVIDENCE[:3]:
        return EVIDENCE.index(section.command)
    # a pipeline of passes stands between what was measured and what was only trained or looked at
    return 3 if section.command not in EVIDENCE else 4 + EVIDENCE.index(section.command)


def sentence(outcome: Outcome) -> str:
    """What one model gained at what loss."""
    gained = []
    speed = outcome.speedup
    if isinstance(speed, Estimate) and speed.low <= 1 <= speed.high:
        gained.append(f"no measurable difference in speed ({shown(speed, 'times')})")
    elif speed is not None:
        gained.append(f"{shown(speed, 'times')} as fast")
    if outcome.smaller is not None:
        gained.append(
            f"{outcome.smaller:.2f}x smaller"
            if outcome.smaller >= 1
            else f"{1 / outcome.smaller:.2f}x larger"
        )
    for share, title in ((outcome.macs, "MACs"), (outcome.parameters, "parameters")):
        if share is not None and round(share, 3) != 1:
            gained.append(f"{abs(1 - share):.0%} {'fewer' if share < 1 else 'more'} {title}")
    lost = []
    if outcome.change is not None:
        lost.append(f"{shown(outcome.change, outcome.unit)} of {outcome.metric}")
    if outcome.drift is not None:
        lost.append(f"outputs {shown(outcome.drift, 'share')} away")
    text = f"{outcome.model} against {outcome.against}: {', '.join(gained) or 'no gain was measured'}"
    return f"{text}; {', '.join(lost) if lost else 'what it loses was not measured'}."


def figures(report: Report) -> list[tuple[str, str]]:
    """The numbers of the summary that stand out: what is said of each, and the number."""
    if not report.outcomes:
        return []
    best = min(report.sections, key=_rank)
    one = (best.outcomes or report.outcomes)[-1]
    found = [
        ("as fast", shown(one.speedup, "times")),
        ("smaller", shown(one.smaller, "times")),
        ("of the MACs", shown(one.macs, "share")),
        ("of the parameters", shown(one.parameters, "share")),
        (f"change of {one.metric}", shown(one.change, one.unit)),
        ("distance of the outputs", shown(one.drift, "share")),
    ]
    return [(title, text) for title, text in found if text]
