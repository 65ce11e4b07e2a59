"""The end of a training run on the terminal: whether fusing pays, where the bundle is, and what to do next."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from serve.adapter import DEFAULT_RANK_LIMIT, rank_limit
from serve.bundle import Bundle
from serve.terminal.screen import Screen
from serve.terminal.words import counted
from training.evaluation.scores import Difference, EvaluationReport, Row
from training.evaluation.tables import HEADINGS, number

VALIDATION = "validation"
"""The name of the rows that a verdict is computed on. The test rows are for the report alone."""


def conclude(
    screen: Screen,
    reports: Sequence[EvaluationReport],
    notes: Sequence[str],
    bundle: Path,
    options: Sequence[str] = (),
) -> None:
    """Print the notes, a verdict on each ensemble, the paths of bundle and report, and the next command. `options` are
    what `choir serve` needs for the bundle."""
    for line in [*notes, *(verdict(each) for each in reports if each.data == VALIDATION)]:
        screen.say(line)
    screen.verbatim(f"bundle: {bundle}")
    screen.verbatim(f"report: {bundle / 'report' / 'index.html'}")
    screen.verbatim(f"next: {shlex.join(['choir', 'serve', str(bundle), *options])}")


def serve_options(bundle: Bundle) -> list[str]:
    """Return what `choir serve` needs for a bundle beside its path: an engine that takes its ranks, where the usual one
    does not."""
    refs = [
        ref for each in bundle.ensembles() for member in each.members for ref in member.adapters
    ]
    limit = rank_limit(bundle.adapter_dir(ref) for ref in refs)
    if limit == DEFAULT_RANK_LIMIT:
        return []
    return ["--engine", json.dumps({"max_lora_rank": limit})]


def verdict(report: EvaluationReport) -> str:
    """Return in one line whether the served fusion is better than the best member, by the report's main figure and the
    interval of the paired difference."""
    name = report.ensemble.partition("@")[0]
    members = [row for row in report.rows if row.kind == "member"]
    gap = next((each for each in report.differences if _is_over_best(each, report.served())), None)
    if len(members) == 1 or gap is None:
        return f"{name}: one member, so there is nothing to fuse"
    best = max(members, key=lambda row: row.scores[gap.metric])
    now, alone = (number(row.scores[gap.metric], gap.metric) for row in (report.served(), best))
    value, low, high = (number(each, gap.metric, "+") for each in (gap.value, gap.low, gap.high))
    return (
        f"{name}: {report.served().name} {now}, best member {best.name} {alone} ({HEADINGS[gap.metric]} on "
        f"{counted(report.count, 'validation row')}; difference {value}, 95% of resamples in [{low}, {high}]): "
        f"{_judged(gap)}"
    )


def _is_over_best(gap: Difference, served: Row) -> bool:
    return gap.name == served.name and gap.over.startswith("best member")


def _judged(gap: Difference) -> str:
    if gap.low > 0:
        return "fusing pays"
    if gap.high < 0:
        return "fusing does harm here"
    return "fusing does not pay here" if gap.value <= 0 else "fusing may pay, or it is chance"
