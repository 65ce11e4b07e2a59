// Tokens of one text, coloured by how far the members were apart; the one in focus is explained below the text.

import { bar, el, fill } from "./dom.js";
import { percent, short } from "./words.js";

/** Nats from which a token has the next stronger colour. */
const LEVELS = [0.02, 0.1, 0.25, 0.45];

export class TokenStrip {
  constructor() {
    this.tokens = [];
    this.spans = [];
    this.whole = el("p", { class: "unseen" });
    this.list = el("div", {
      class: "tokens",
      role: "listbox",
      "aria-label": "Tokens; the arrow keys go from one to the next",
      "aria-orientation": "horizontal",
      hidden: true,
      keydown: (event) => this.move(event),
      mouseover: (event) => this.explain(this.spans.indexOf(event.target)),
      focusin: (event) => this.explain(this.spans.indexOf(event.target)),
    });
    this.detail = el("div", { class: "detail", "aria-live": "polite" });
    this.legend = el("p", { class: "note legend", hidden: true }, "Members agree ", [0, 1, 2, 3, 4].map((level) => el("span", { "data-level": level, "aria-hidden": "true" })), " members differ");
    this.node = el("div", { class: "strip" }, this.whole, this.list, this.legend, this.detail);
  }

  /** Adds tokens as they come. */
  add(tokens) {
    for (const token of tokens) {
      if (!token.text) continue;
      const level = token.disagreement == null ? null : LEVELS.filter((least) => token.disagreement >= least).length;
      const span = el("span", { role: "option", "aria-selected": "false", tabindex: this.spans.length ? -1 : 0, "data-level": level }, token.text);
      if (!token.text.trim()) span.setAttribute("aria-label", "white space");
      this.tokens.push(token);
      this.spans.push(span);
      this.list.append(span);
      this.list.hidden = false;
      if (level !== null) this.legend.hidden = false;
    }
  }

  /** The text is complete: a screen reader reads it as one. */
  end(text) {
    this.whole.textContent = text;
    if (this.spans.length) fill(this.detail, el("p", { class: "note" }, "Point at a token, or go to it with Tab and the arrow keys, to see what each member thought of it."));
  }

  move(event) {
    const last = this.spans.length - 1;
    const now = this.spans.indexOf(event.target);
    const goal = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: last }[event.key];
    if (goal === undefined || now < 0) return;
    event.preventDefault();
    this.spans[Math.max(0, Math.min(last, goal))].focus();
  }

  explain(place) {
    if (place < 0) return;
    for (const span of this.list.querySelectorAll("[aria-selected=true]")) {
      span.setAttribute("aria-selected", "false");
      span.tabIndex = -1;
    }
    this.spans[place].setAttribute("aria-selected", "true");
    this.spans[place].tabIndex = 0;
    fill(this.detail, described(this.tokens[place]));
  }
}

function described({ text, logprob, disagreement, members }) {
  const rows = [{ name: "Together", logprob, kind: "fused" }, ...(members ?? [])].filter((row) => row.logprob != null);
  return [
    el("p", {}, el("code", {}, JSON.stringify(text)), disagreement != null && ` disagreement ${short(disagreement)} nats`),
    el(
      "ul",
      {},
      rows.map((row) => el("li", {}, el("span", { class: "name" }, row.name), bar(Math.exp(row.logprob), row.kind), el("span", {}, percent(Math.exp(row.logprob))))),
    ),
  ];
}
