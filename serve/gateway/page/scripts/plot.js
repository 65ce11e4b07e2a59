// A plot of lines over time, drawn as SVG. Its label says the same in a sentence, and a table has the numbers.

import { el, fill, svg } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 170, 52, 10, 10, 22];
const ROWS = 12;

export class Plot {
  /** `shown` turns a value into words; `atLeast` is the least top of the axis, `atMost` its end where there is one. */
  constructor({ title, about, shown, atLeast = 0, atMost = null, marks = false }) {
    Object.assign(this, { title, shown, atLeast, atMost, marks });
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
    this.legend = el("p", { class: "key" });
    this.empty = el("p", { class: "note" }, "No figures yet.");
    this.table = el("div", {});
    this.details = el("details", { toggle: () => this.fillTable() }, el("summary", {}, "As a table"), this.table);
    this.node = el("figure", { class: "card plot" }, el("figcaption", {}, el("h2", {}, title), el("p", { class: "note" }, about)), this.drawing, this.legend, this.empty, this.details);
  }

  /** Draws the lines: name -> list of {time, value}, where the value may be null. Times are in milliseconds. */
  show(lines, from, to) {
    this.lines = [...lines].filter(([, points]) => points.some((point) => point.value != null));
    const values = this.lines.flatMap(([, points]) => points.map((point) => point.value).filter((value) => value != null));
    const top = this.atMost ?? nice(Math.max(this.atLeast, ...values));
    const x = (time) => LEFT + ((WIDTH - LEFT - RIGHT) * (time - from)) / (to - from || 1);
    const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * Math.min(value, top)) / (top || 1);
    fill(this.drawing, this.axes(top, y, to - from), this.lines.map(([, points], place) => svg("path", { class: `series s${place % 6}`, d: path(points, x, y, this.marks) })));
    fill(this.legend, this.lines.map(([name, points], place) => el("span", { class: `s${place % 6}` }, `${name} ${this.shown(latest(points))}`)));
    this.empty.hidden = this.lines.length > 0;
    this.drawing.setAttribute("aria-label", `${this.title}. ${this.told()}`);
    this.fillTable();
  }

  axes(top, y, span) {
    const levels = [0, top / 2, top];
    return [
      levels.map((level) => [
        svg("path", { class: "grid", d: `M${LEFT} ${y(level)}H${WIDTH - RIGHT}` }),
        svg("text", { x: LEFT - 6, y: y(level) + 4, "text-anchor": "end" }, this.shown(level)),
      ]),
      svg("text", { x: LEFT, y: HEIGHT - 4 }, `${Math.round(span / 60000)} min ago`),
      svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
    ];
  }

  told() {
    if (!this.lines.length) return "No figures yet.";
    const said = this.lines.map(([name, points]) => {
      const values = points.map((point) => point.value).filter((value) => value != null);
      return `${name}: ${this.shown(values.at(-1))} now, from ${this.shown(Math.min(...values))} to ${this.shown(Math.max(...values))}`;
    });
    return `${said.join("; ")}.`;
  }

  fillTable() {
    if (!this.details.open || !this.lines) return;
    const times = [...new Set(this.lines.flatMap(([, points]) => points.map((point) => point.time)))].sort((one, other) => other - one).slice(0, ROWS);
    const value = (points, time) => this.shown(points.find((point) => point.time === time)?.value);
    fill(
      this.table,
      el(
        "table",
        {},
        el("caption", { class: "unseen" }, this.title),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), this.lines.map(([name]) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, times.map((time) => el("tr", {}, el("th", { scope: "row" }, new Date(time).toLocaleTimeString()), this.lines.map(([, points]) => el("td", {}, value(points, time)))))),
      ),
    );
  }
}

/** The next number upwards that reads well on an axis. */
function nice(value) {
  if (!(value > 0)) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((each) => each * size >= value * 1.0001) * size;
}

function path(points, x, y, steps) {
  let drawing = "";
  let broken = true;
  for (const { time, value } of points) {
    if (value == null) {
      broken = true;
      continue;
    }
    const at = `${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    drawing += broken ? `M${at}h0.1` : steps ? `H${x(time).toFixed(1)}V${y(value).toFixed(1)}` : `L${at}`;
    broken = false;
  }
  return drawing;
}

function latest(points) {
  return points.findLast((point) => point.value != null)?.value;
}
