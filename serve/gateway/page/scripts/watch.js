// The tab "Watch": live plots of what /metrics says.

import { byId, el, fill, say } from "./dom.js";
import { parse, Span } from "./metrics.js";
import { Plot } from "./plot.js";
import { text } from "./server.js";
import { percent, seconds, short } from "./words.js";

const EVERY = 2500;
const SPAN = 15_000;
const KEPT = 10 * 60_000;
const INFERENCE = /^\/v1\/(predict|completions|chat\/completions)$/;

/** Each plot: its words, and its lines for the time of a span: [[name, value], ...]. `of` takes the samples of the
 * ensemble that is watched. A plot without a line is not shown, unless it is one of those that every server has. */
const PLOTS = [
  {
    title: "Latency", about: "From a request's arrival to its last byte.", shown: seconds, always: true,
    lines: (span, of) => [0.5, 0.99].map((share) => [`p${share * 100}`, span.quantile(share, "choir_request_seconds", asked(of))]),
  },
  {
    title: "Throughput", about: "Requests answered in a second.", shown: short, always: true,
    lines: (span, of) => {
      const rate = (failed) => span.growth("choir_requests_total", (l) => asked(of)(l) && /^[45]/.test(l.status) === failed) / span.seconds;
      return [["answered", rate(false)], ["refused or failed", rate(true)]];
    },
  },
  {
    title: "In flight", about: "Requests being worked on.", shown: short, always: true,
    lines: (span, of) => [["in flight", span.now("choir_requests_in_flight", of)]],
  },
  {
    title: "Agreement", about: "How often each member's own answer was the fused one.", shown: percent, atMost: 1, always: true,
    lines: (span, of) => shares(span, "choir_member_agreement_total", "agrees", of),
  },
  {
    title: "Disagreement", about: "How far members are apart, in nats.", shown: short, always: true,
    lines: (span, of) => [["mean", span.mean("choir_disagreement", of)], ["p90", span.quantile(0.9, "choir_disagreement", of)]],
  },
  {
    title: "Tokens", about: "Tokens written for users in a second.", shown: short,
    lines: (span, of) => (span.now("choir_generated_tokens_total", of) ? [["tokens", span.growth("choir_generated_tokens_total", of) / span.seconds]] : []),
  },
  {
    title: "Active versions", about: "A step is a swap or a rollback.", shown: short, always: true, marks: true,
    lines: (span, of) => gauges(span, "choir_active_version", of, (labels) => labels.ensemble, Math.max),
  },
  {
    title: "Swaps", about: "Rollouts that have ended, by outcome.", shown: short, marks: true,
    lines: (span, of) => gauges(span, "choir_rollouts_total", of, (labels) => labels.outcome, (one, other) => one + other),
  },
  {
    title: "Drift", about: "Population stability index against the validation rows; from 0.25 on, the traffic is another.", shown: short, atLeast: 0.25,
    lines: (span, of) => gauges(span, "choir_drift_psi", of, (labels) => `${labels.ensemble} ${labels.figure}`, Math.max),
  },
  {
    title: "Members that matter", about: "Share of sampled answers that would be another without the member.", shown: percent, atLeast: 0.1,
    lines: (span, of) => shares(span, "choir_member_changed_answers_total", "changed", of),
  },
];

/** Starts reading /metrics, and returns what shows the tab. */
export function startWatching() {
  const watch = new Watch();
  setInterval(() => document.hidden || watch.read(), EVERY);
  watch.read();
  byId("watched").addEventListener("change", () => watch.draw());
  return () => watch.draw();
}

class Watch {
  constructor() {
    this.readings = [];
    this.reading = false;
    this.plots = PLOTS.map((each) => ({ ...each, plot: new Plot(each) }));
    fill(byId("plots"), this.plots.map(({ plot }) => plot.node));
  }

  async read() {
    if (this.reading) return;
    this.reading = true;
    try {
      this.readings.push({ time: Date.now(), samples: parse(await text("/metrics")) });
      this.readings = this.readings.filter((each) => each.time > Date.now() - KEPT - SPAN);
      say(byId("watch-error"), null);
    } catch (error) {
      say(byId("watch-error"), error.message);
    } finally {
      this.reading = false;
    }
    this.draw();
  }

  draw() {
    if (byId("watch").hidden || !this.readings.length) return;
    this.offerEnsembles();
    const chosen = byId("watched").value;
    const of = (labels) => !chosen || labels.ensemble === chosen;
    const spans = this.spans();
    const to = this.readings.at(-1).time;
    const from = Math.min(this.readings[0].time, to - 60_000);
    for (const { plot, lines, always } of this.plots) {
      const drawn = new Map();
      for (const { time, span } of spans)
        for (const [name, value] of lines(span, of)) {
          if (!drawn.has(name)) drawn.set(name, []);
          drawn.get(name).push({ time, value });
        }
      plot.node.hidden = !always && drawn.size === 0;
      if (!plot.node.hidden) plot.show(drawn, from, to);
    }
  }

  /** For each reading, the span to the first reading at least 15 seconds before it, or to the very first. */
  spans() {
    return this.readings.flatMap((reading, place) => {
      const before = this.readings.slice(0, place).findLast((each) => each.time <= reading.time - SPAN) ?? this.readings[0];
      const gone = (reading.time - before.time) / 1000;
      return gone > 0 ? [{ time: reading.time, span: new Span(before.samples, reading.samples, gone) }] : [];
    });
  }

  offerEnsembles() {
    const select = byId("watched");
    const known = [...select.options].map((option) => option.value);
    for (const { labels } of this.readings.at(-1).samples.get("choir_active_version") ?? [])
      if (!known.includes(labels.ensemble)) {
        known.push(labels.ensemble);
        select.append(el("option", { value: labels.ensemble }, labels.ensemble));
      }
  }
}

/** The requests that ask for an answer, rather than those of pages and probes. */
function asked(of) {
  return (labels) => of(labels) && INFERENCE.test(labels.route);
}

/** For each member the share of "true" of a counter with two values; only where the counter grew. */
function shares(span, name, label, of) {
  const members = new Set((span.after.get(name) ?? []).filter((each) => of(each.labels)).map((each) => `${each.labels.ensemble}/${each.labels.member}`));
  return [...members].sort().map((member) => {
    const own = (labels) => of(labels) && `${labels.ensemble}/${labels.member}` === member;
    const all = span.growth(name, own);
    return [member, all > 0 ? span.growth(name, (labels) => own(labels) && labels[label] === "true") / all : null];
  });
}

function gauges(span, name, of, named, joined) {
  const values = new Map();
  for (const { labels, value } of span.after.get(name) ?? []) {
    if (!of(labels)) continue;
    const key = named(labels);
    values.set(key, values.has(key) ? joined(values.get(key), value) : value);
  }
  return [...values].sort();
}
