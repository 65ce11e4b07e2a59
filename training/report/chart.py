"""A chart as data: axes, lines and marks with their places in the picture. `chart.jinja` draws it as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from training.report.axis import Axis

WIDTH, HEIGHT = 360, 250
"""The picture's size. It is that of a phone, so that its letters are not scaled below a readable size."""
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38
COLOURS = 8
RADIUS = 8.0


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    """Which of the page's colours; lines after the eighth are dashed."""
    strong: bool = False
    dots: bool = False
    """Whether each point is marked."""
    repeats: bool = False
    """Whether it belongs to the line before it. It has the same colour, is dashed, and stands in no legend."""

    @property
    def dashed(self) -> bool:
        return self.repeats or self.colour >= COLOURS


@dataclass(frozen=True)
class Mark:
    """One numbered point of a chart, with the interval of its value."""

    number: int
    name: str
    x: float
    y: float
    low: float
    high: float
    colour: int
    chosen: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart with its caption."""

    title: str
    caption: str
    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    diagonal: bool = False
    """Whether the line y = x is drawn."""
    rule: float | None = None
    """The value of the x axis at which an upright line is drawn."""
    note: str = ""
    """What the reader needs to know about the numbers."""
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)
    left: int = field(default=LEFT, init=False)
    top: int = field(default=TOP, init=False)
    right: int = field(default=WIDTH - RIGHT, init=False)
    bottom: int = field(default=HEIGHT - BOTTOM, init=False)

    @property
    def legend(self) -> list[Line]:
        """Return the lines that the legend names: the strong one first, and no line that repeats another dashed."""
        named = [line for line in self.lines if not line.repeats]
        return sorted(named, key=lambda line: not line.strong)

    def across(self, value: float) -> float:
        """Return the place of a value of the x axis in the picture."""
        return round(self.left + self.x.share(value) * (self.right - self.left), 2)

    def down(self, value: float) -> float:
        """Return the place of a value of the y axis in the picture."""
        return round(self.bottom - self.y.share(value) * (self.bottom - self.top), 2)

    def path(self, line: Line) -> str:
        """Return a line's points as SVG writes them."""
        return " ".join(f"{self.across(x)},{self.down(y)}" for x, y in line.points)

    def places(self) -> list[tuple[Mark, float, float]]:
        """Return each mark with its place. A mark that would lie on another one stands beside it."""
        taken: list[tuple[Mark, float, float]] = []
        for mark in self.marks:
            at, down = self.across(mark.x), self.down(mark.y)
            steps = [0.0, *(sign * n * RADIUS for n in range(1, 40) for sign in (1, -1))]
            inside = [
                at + step
                for step in steps
                if self.left + RADIUS <= at + step <= self.right - RADIUS
                and all(
                    abs(at + step - other) >= 2 * RADIUS or abs(down - level) >= 2 * RADIUS
                    for _, other, level in taken
                )
            ]
            taken.append((mark, round(inside[0] if inside else at, 2), down))
        return taken


@dataclass(frozen=True)
class Dot:
    """One row of a dot plot: a name, a value and its interval."""

    name: str
    value: float
    low: float
    high: float
    text: str
    strong: bool = False


@dataclass(frozen=True)
class DotPlot:
    """Values of several things on one axis, one below the other."""

    title: str
    caption: str
    axis: Axis
    dots: Sequence[Dot]
    zero: bool = False
    """Whether the place of 0 is marked."""

    def across(self, value: float) -> float:
        """Return the place of a value in a picture that is 1000 wide."""
        return round(10 + 980 * self.axis.share(value), 1)
