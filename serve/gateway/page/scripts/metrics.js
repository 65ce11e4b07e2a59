// Reads Prometheus' text, and turns two readings into rates, shares and quantiles.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"\s*,?\s*/y;
const ESCAPES = { n: "\n", '"': '"', "\\": "\\" };

/** Returns the samples of a text: name -> list of {labels, value}. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line.trim());
    if (!match) continue;
    const [, name, labels, value] = match;
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels: readLabels(labels ?? ""), value: number(value) });
  }
  return samples;
}

function readLabels(text) {
  const labels = {};
  LABEL.lastIndex = 0;
  for (let match; (match = LABEL.exec(text)); ) labels[match[1]] = match[2].replace(/\\(.)/g, (whole, escaped) => ESCAPES[escaped] ?? whole);
  return labels;
}

function number(text) {
  return { "+Inf": Infinity, "-Inf": -Infinity, NaN: NaN }[text] ?? Number(text);
}

/** Two readings, and the seconds between them. */
export class Span {
  constructor(before, after, seconds) {
    this.before = before;
    this.after = after;
    this.seconds = seconds;
  }

  /** How much the samples that `chosen` takes grew in all; 0 where none is. A series that is new, or that a restart has
   * set back, has grown from 0. */
  growth(name, chosen = () => true) {
    const [before, after] = [total(this.before, name, chosen), total(this.after, name, chosen)];
    return after < before ? after : after - before;
  }

  /** The growth for each value of a label. */
  growthBy(name, label, chosen = () => true) {
    const values = new Set((this.after.get(name) ?? []).filter((each) => chosen(each.labels)).map((each) => each.labels[label]));
    return new Map([...values].sort().map((value) => [value, this.growth(name, (labels) => chosen(labels) && labels[label] === value)]));
  }

  /** The sum of a gauge now; null where there is none. */
  now(name, chosen = () => true) {
    return (this.after.get(name) ?? []).some((each) => chosen(each.labels)) ? total(this.after, name, chosen) : null;
  }

  /** The quantile of what a histogram saw in this time, as Prometheus' histogram_quantile; null if it saw nothing. */
  quantile(share, name, chosen = () => true) {
    const buckets = [...this.growthBy(`${name}_bucket`, "le", chosen)].map(([le, count]) => [number(le), count]).sort((one, other) => one[0] - other[0]);
    return quantile(share, buckets);
  }

  /** The mean of what a histogram saw in this time; null if it saw nothing. */
  mean(name, chosen = () => true) {
    const count = this.growth(`${name}_count`, chosen);
    return count > 0 ? this.growth(`${name}_sum`, chosen) / count : null;
  }
}

/** The quantile of cumulative buckets [upper bound, count], by linear interpolation inside a bucket. */
export function quantile(share, buckets) {
  const all = buckets.at(-1)?.[1] ?? 0;
  if (!(all > 0)) return null;
  const rank = share * all;
  const place = buckets.findIndex(([, count]) => count >= rank);
  const [upper, count] = buckets[place];
  if (upper === Infinity) return buckets.at(-2)?.[0] ?? null;
  const [lower, below] = place > 0 ? buckets[place - 1] : [0, 0];
  return count === below ? upper : lower + ((upper - lower) * (rank - below)) / (count - below);
}

function total(reading, name, chosen) {
  return (reading.get(name) ?? []).reduce((sum, each) => (chosen(each.labels) ? sum + each.value : sum), 0);
}
