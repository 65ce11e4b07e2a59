// One rollout under way: its phases, the replicas, and the gates of a trial as they fill.

import { bar, el, fill, say } from "./dom.js";
import { change, get } from "./server.js";
import { percent, short } from "./words.js";

const EVERY = 1000;
const TRIALS = { shadow: "shadowing", canary: "canarying" };

export class RolloutPanel {
  constructor(rollout, { ended, closed }) {
    this.ended = ended;
    this.closed = closed;
    this.id = rollout.id;
    this.title = el("h2", {}, `${rollout.ensemble}: version ${rollout.from} → ${rollout.to}`);
    this.phases = el("ol", { class: "phases" });
    this.said = el("p", { role: "status" });
    this.gates = el("div", { class: "filling" });
    this.replicas = el("p", { class: "note" });
    this.error = el("p", { class: "notice bad", role: "alert", hidden: true });
    this.promote = el("button", { type: "button", class: "main", click: () => this.decide("promote") }, "Promote now");
    this.abort = el("button", { type: "button", click: () => this.decide("abort") }, "Abort");
    this.close = el("button", { type: "button", class: "quiet", hidden: true, click: () => this.dismiss() }, "Close");
    this.node = el("article", { class: "card rollout" }, this.title, this.phases, this.said, this.gates, this.replicas, this.error, el("div", { class: "actions" }, this.promote, this.abort, this.close));
    this.show(rollout);
    this.timer = setTimeout(() => this.look(), EVERY);
  }

  async look() {
    try {
      this.show(await get(`/v1/rollouts/${encodeURIComponent(this.id)}`));
      say(this.error, null);
    } catch (error) {
      say(this.error, error.message);
    }
    if (!this.over) this.timer = setTimeout(() => this.look(), EVERY);
    else this.ended();
  }

  get over() {
    return ["done", "aborted"].includes(this.rollout.state);
  }

  show(rollout) {
    this.rollout = rollout;
    const trying = Object.values(TRIALS).includes(rollout.state);
    fill(this.phases, phases(rollout));
    const sentence = told(rollout);
    if (this.said.textContent !== sentence) this.said.textContent = sentence;
    if (rollout.trial) fill(this.gates, gates(rollout.trial));
    const replicas = Object.entries(rollout.replicas).map(([name, state]) => `${name} ${state}`);
    this.replicas.textContent = replicas.join(", ");
    this.promote.hidden = !trying;
    this.abort.hidden = !(trying || rollout.state === "preparing");
    this.close.hidden = !this.over;
    this.node.dataset.state = rollout.state;
  }

  async decide(decision) {
    this.promote.disabled = this.abort.disabled = true;
    try {
      this.show(await change(`/v1/rollouts/${encodeURIComponent(this.id)}/${decision}`, {}));
      say(this.error, null);
    } catch (error) {
      say(this.error, error.message);
    } finally {
      this.promote.disabled = this.abort.disabled = false;
    }
  }

  dismiss() {
    clearTimeout(this.timer);
    this.node.remove();
    this.closed();
  }
}

function phases({ state, strategy }) {
  const way = ["preparing", ...(TRIALS[strategy] ? [TRIALS[strategy]] : []), "committing", "draining", state === "aborted" ? "aborted" : "done"];
  const now = way.indexOf(state);
  return way.map((phase, place) => el("li", { class: place < now && state !== "aborted" ? "past" : place === now ? "now" : "", "aria-current": place === now ? "step" : null }, phase));
}

function told({ state, from, to, reason, strategy, action }) {
  const words = {
    preparing: `Every engine loads version ${to} beside version ${from} and checks it.`,
    shadowing: `Version ${to} is asked in silence; version ${from} answers.`,
    canarying: `Version ${to} answers a share of the requests.`,
    committing: `Version ${to} becomes active.`,
    draining: `Version ${to} is active; the last requests on version ${from} end.`,
    done: `Version ${to} is active.`,
    aborted: `Given up; version ${from} went on answering.`,
  };
  const kind = state === "preparing" ? ` This is a ${action}, ${strategy}.` : "";
  return `${words[state] ?? state}${kind}${reason ? ` ${reason}` : ""}`;
}

/** A line for each gate: how far it is, and whether it holds. */
function gates({ gates: limits, candidate, stable, compared, agreement, dropped, share, auto_promote: auto, max_seconds: seconds }) {
  const failed = candidate.requests ? candidate.errors / candidate.requests : null;
  const ratio = candidate.mean_ms != null && stable.mean_ms ? candidate.mean_ms / stable.mean_ms : null;
  const end = `${percent(share)} of the requests. ${auto ? "Becomes active once all gates are passed" : "Waits for you to promote it"}${seconds == null ? "." : `; given up after ${short(seconds)} s.`}`;
  return [
    counting("Requests answered", candidate.requests, limits.min_requests),
    limits.min_agreement != null && counting("Requests compared", compared, limits.min_requests),
    limits.max_latency_ratio != null && counting("Requests of the active version", stable.requests, limits.min_requests),
    limit("Error rate", failed, percent, limits.max_error_rate, "at most"),
    limits.min_agreement != null && limit("Agreement", agreement, percent, limits.min_agreement, "at least"),
    limits.max_latency_ratio != null && limit("Latency", ratio, (value) => `${short(value)}×`, limits.max_latency_ratio, "at most"),
    el("p", { class: "note" }, end, dropped > 0 && ` ${dropped} requests were not compared: the queue was full.`),
  ];
}

function counting(name, count, goal) {
  return gate(name, count / goal, `${count} of ${goal}`, count >= goal ? "holds" : "fills");
}

function limit(name, value, shown, border, way) {
  const holds = way === "at most" ? value <= border : value >= border;
  const share = way === "at least" ? value : border > 0 ? value / (2 * border) : value;
  const state = value == null ? "fills" : holds ? "holds" : "fails";
  return gate(name, share, `${value == null ? "no figure yet" : shown(value)}, ${way} ${shown(border)}`, state);
}

function gate(name, share, words, state) {
  const mark = { holds: "holds", fails: "does not hold", fills: "not yet" }[state];
  return el("p", { class: `gate ${state}` }, el("span", { class: "name" }, name), bar(share, state), el("span", { class: "figure" }, words), el("span", { class: "chip" }, mark));
}
