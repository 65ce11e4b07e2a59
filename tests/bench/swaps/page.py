"""The report of a run: one HTML page, with its plots as inline SVG, that loads nothing."""

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.measuring import p99_ms
from tests.bench.swaps.clients import CHAT, PREDICT, Answered

WIDTH, HEIGHT, LEFT, BOTTOM = 960, 220, 64, 24
COLOURS = ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } .good { color: #107010 } .bad { color: #b00020 }
svg { background: #fafafa; border: 1px solid #ddd } svg text { font-size: 11px; fill: #444 }
"""


@dataclass(frozen=True)
class Phase:
    """A stretch of the run."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Event:
    """Something that was done to the server."""

    at: float
    what: str
    seconds: float | None = None
    """How long it took until it was answered."""
    bad: bool = False


@dataclass(frozen=True)
class Run:
    """All that the report tells."""

    settings: str
    phases: Sequence[Phase]
    events: Sequence[Event]
    answers: Sequence[Answered]
    checks: Sequence[tuple[str, bool]]
    """A sentence, and whether it held."""

    @property
    def seconds(self) -> float:
        return self.phases[-1].ended


def render(run: Run) -> str:
    """The page."""
    checks = "".join(
        f'<li class="{"good" if held else "bad"}">{"✓" if held else "✗"} {html.escape(text)}</li>'
        for text, held in run.checks
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Swaps under load</title><style>{STYLE}</style>
<h1>Swaps under load</h1>
<p>{html.escape(run.settings)}</p>
<ul>{checks}</ul>
<h2>Latency by phase</h2>{_latencies(run)}
<h2>Predictions: latency over time</h2>{_scatter(run, PREDICT)}
<h2>Streamed chats: latency over time</h2>{_scatter(run, CHAT)}
<h2>Requests a second</h2>{_rates(run)}
<h2>Versions over time</h2>{_versions(run)}
<h2>What was done</h2>{_events(run)}
</html>
"""


def phase_p99_ms(run: Run, name: str, kind: str = PREDICT) -> float:
    """Milliseconds."""
    return p99_ms(_seconds(run, name, kind))


def _seconds(run: Run, phase_name: str, kind: str) -> list[float]:
    (phase,) = [phase for phase in run.phases if phase.name == phase_name]
    return [
        answer.seconds
        for answer in run.answers
        if answer.kind == kind and phase.began <= answer.began and _ended(answer) <= phase.ended
    ]


def _ended(answer: Answered) -> float:
    return answer.began + answer.seconds


def _latencies(run: Run) -> str:
    rows = []
    for phase in run.phases:
        for kind in (PREDICT, CHAT):
            seconds = sorted(_seconds(run, phase.name, kind))
            if len(seconds) < 2:
                continue
            cells = (
                f"{phase.name}: {kind}",
                str(len(seconds)),
                f"{seconds[len(seconds) // 2] * 1000:.0f}",
                f"{p99_ms(seconds):.0f}",
                f"{seconds[-1] * 1000:.0f}",
            )
            rows.append(cells)
    return _table(("phase", "requests", "median ms", "p99 ms", "largest ms"), rows)


def _events(run: Run) -> str:
    rows = [
        (
            f"{event.at:.1f} s",
            event.what,
            "" if event.seconds is None else f"{event.seconds:.2f} s",
        )
        for event in run.events
    ]
    return _table(("at", "what", "answered after"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _scatter(run: Run, kind: str) -> str:
    """Each answer a dot; latency on a logarithmic scale."""
    answers = [answer for answer in run.answers if answer.kind == kind]
    low, high = -2.5, max((math.log10(a.seconds) for a in answers if a.seconds > 0), default=0.0)
    high = max(math.ceil(high), 1)

    def y(seconds: float) -> float:
        share = (math.log10(max(seconds, 10**low)) - low) / (high - low)
        return (HEIGHT - BOTTOM) * (1 - share)

    dots = "".join(
        f'<circle cx="{_x(run, _ended(a)):.1f}" cy="{y(a.seconds):.1f}" r="1.6" '
        f'fill="{"#dc3912" if a.failure or a.mixed else COLOURS[0]}" fill-opacity="0.55"/>'
        for a in answers
    )
    ticks = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(10.0**p):.1f}" y2="{y(10.0**p):.1f}" stroke="#ddd"/>'
        f'<text x="4" y="{y(10.0**p) + 4:.1f}">{10.0**p * 1000:g} ms</text>'
        for p in range(math.ceil(low), high + 1)
    )
    return _svg(run, ticks + dots)


def _rates(run: Run) -> str:
    """Answers in each second, of both kinds."""
    counts = {kind: Counter[int]() for kind in (PREDICT, CHAT)}
    for answer in run.answers:
        counts[answer.kind][int(_ended(answer))] += 1
    top = max((max(each.values(), default=1) for each in counts.values()), default=1)
    lines = []
    for colour, (kind, each) in zip(COLOURS, counts.items(), strict=False):
        points = " ".join(
            f"{_x(run, second + 0.5):.1f},{(HEIGHT - BOTTOM) * (1 - each[second] / top):.1f}"
            for second in range(int(run.seconds))
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        lines.append(
            f'<text x="{WIDTH - 90}" y="{16 + 14 * len(lines) / 2}" fill="{colour}">'
            f'<tspan fill="{colour}">— {kind}</tspan></text>'
        )
    scale = f'<text x="4" y="12">{top}/s</text><text x="4" y="{HEIGHT - BOTTOM}">0</text>'
    return _svg(run, scale + "".join(lines))


def _versions(run: Run) -> str:
    """Which version answered, each answer a dot on its version's line."""
    names = sorted(
        {answer.model for answer in run.answers if answer.model},
        key=lambda name: (name.split("@")[0], int(name.split("@")[1].split("/")[0])),
    )
    step = 16
    height = step * len(names) + BOTTOM + 8
    rows = {name: 12 + step * number for number, name in enumerate(names)}
    labels = "".join(
        f'<text x="4" y="{y + 4}">{html.escape(name.replace("replies", "r").replace("intents", "i"))}</text>'
        for name, y in rows.items()
    )
    dots = "".join(
        f'<circle cx="{_x(run, _ended(a)):.1f}" cy="{rows[a.model]}" r="2" '
        f'fill="{COLOURS[rows[a.model] // step % len(COLOURS)]}" fill-opacity="0.5"/>'
        for a in run.answers
        if a.model in rows
    )
    return _svg(run, labels + dots, height) + "<p>i is intents, r is replies.</p>"


def _svg(run: Run, content: str, height: int = HEIGHT) -> str:
    """With the phases as bands, the events as lines, and the time below."""
    bands = "".join(
        f'<rect x="{_x(run, phase.began):.1f}" y="0" height="{height - BOTTOM}" '
        f'width="{_x(run, phase.ended) - _x(run, phase.began):.1f}" '
        f'fill="{"#eef3ff" if number % 2 else "#ffffff"}"/>'
        f'<text x="{_x(run, phase.began) + 4:.1f}" y="{height - 8}">{html.escape(phase.name)}, '
        f"from {phase.began:.0f} s</text>"
        for number, phase in enumerate(run.phases)
    )
    marks = "".join(
        f'<line x1="{_x(run, event.at):.1f}" x2="{_x(run, event.at):.1f}" y1="0" '
        f'y2="{height - BOTTOM}" stroke="{"#dc3912" if event.bad else "#999"}" '
        f'stroke-dasharray="2 3"><title>{html.escape(event.what)}</title></line>'
        for event in run.events
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img">{bands}{marks}{content}</svg>'
    )


def _x(run: Run, at: float) -> float:
    return LEFT + (WIDTH - LEFT) * at / run.seconds
