// The tab "Versions": what is active and loaded where, what is under way, and what has happened.

import { SwapForm } from "./change.js";
import { byId, el, fill, say } from "./dom.js";
import { change, get } from "./server.js";
import { RolloutPanel } from "./trial.js";
import { counted, digest, moment, short } from "./words.js";

const EVERY = 4000;
const ENDED = ["done", "aborted"];
const FAILED = /abort|refus|fail|fault/;
const VERSIONS_SHOWN = 8;
/** Up to so many ensembles are shown with all their members. */
const FEW = 6;

/** Returns what shows the tab; from then on it is kept up to date while it is seen. */
export function startVersions() {
  const versions = new Versions();
  setInterval(() => byId("versions").hidden || document.hidden || versions.refresh(), EVERY);
  return () => versions.refresh();
}

class Versions {
  constructor() {
    this.cards = new Map();
    this.panels = new Map();
    this.asking = false;
  }

  async refresh() {
    if (this.asking) return;
    this.asking = true;
    try {
      const [ensembles, rollouts] = await Promise.all([get("/v1/ensembles"), get("/v1/rollouts")]);
      this.showEnsembles(ensembles.data);
      for (const rollout of rollouts.data) if (!ENDED.includes(rollout.state)) this.follow(rollout);
      showHistory(rollouts.audit);
      say(byId("versions-error"), null);
    } catch (error) {
      say(byId("versions-error"), error.message);
    } finally {
      this.asking = false;
    }
  }

  showEnsembles(views) {
    const place = byId("ensembles");
    const names = views.map((view) => view.name);
    const pools = new Set(views.map((view) => view.pool)).size;
    for (const view of views) {
      if (!this.cards.has(view.name)) this.cards.set(view.name, new EnsembleCard((rollout) => this.follow(rollout), views.length <= FEW));
      this.cards.get(view.name).show(view, pools > 1);
    }
    const shown = place.dataset.names;
    place.dataset.names = names.join(" ");
    if (shown === place.dataset.names) return;
    fill(place, names.map((name) => this.cards.get(name).node));
    if (!names.length) fill(place, el("p", { class: "empty" }, "This server has no ensemble yet: it is starting, or its bundle has none."));
  }

  /** Shows a rollout and follows it to its end. */
  follow(rollout) {
    if (this.panels.has(rollout.id)) return;
    const panel = new RolloutPanel(rollout, {
      ended: () => this.refresh(),
      closed: () => this.panels.delete(rollout.id),
    });
    this.panels.set(rollout.id, panel);
    byId("rollouts").prepend(panel.node);
  }
}

/** One ensemble. Its parts that a person may be typing in are made once. */
class EnsembleCard {
  constructor(follow, open) {
    this.follow = follow;
    this.title = el("div", { class: "head" });
    this.facts = el("div", {});
    const facts = el("details", { open }, el("summary", {}, "Members and versions"), this.facts);
    this.refused = el("p", { class: "notice bad", role: "alert", hidden: true });
    this.back = el("button", { type: "button", click: () => this.rollBack() });
    this.form = new SwapForm((rollout) => this.begun(rollout));
    this.node = el("article", { class: "card ensemble" }, this.title, facts, this.refused, el("div", { class: "actions" }, this.back), this.form.node);
  }

  show(view, pooled) {
    const before = this.view;
    this.view = view;
    if (JSON.stringify(before) === JSON.stringify(view)) return;
    fill(this.title, el("h2", {}, view.name, el("span", { class: "chip strong" }, `version ${view.active_version}`)), el("p", { class: "note" }, summary(view), pooled && `, by the engines of ${view.pool}`));
    fill(this.facts, notes(view), members(view), versions(view));
    const earlier = view.previous.at(-1);
    this.back.textContent = earlier == null ? "No version to go back to" : `Roll back to version ${earlier}`;
    this.back.disabled = earlier == null;
    this.form.show(view);
  }

  begun(rollout) {
    say(this.refused, null);
    this.follow(rollout);
  }

  async rollBack() {
    const { name, active_version: active, previous } = this.view;
    const to = previous.at(-1);
    if (!(await confirmed(`Roll ${name} back?`, `Version ${to} answers again instead of version ${active}. Requests under way end on the version that they began on.`, "Roll back"))) return;
    try {
      this.begun(await change(`/v1/ensembles/${encodeURIComponent(name)}/rollback`, { to }));
    } catch (error) {
      say(this.refused, error.message);
    }
  }
}

function summary(view) {
  const fit = view.fusion_fit.state === "none" ? "" : `, ${view.fusion_fit.state}`;
  return `${view.task}, fused by ${view.fusion}${fit}; ${view.pinned ? "always loaded" : "loaded on demand"}`;
}

function notes(view) {
  return [
    view.stale_fusion && el("p", { class: "notice" }, "The fusion was fitted on other adapters than those that answer, which a swap has allowed."),
    view.differences.map((sentence) => el("p", { class: "notice" }, sentence)),
    view.bring_in && el("p", { class: "note" }, "To serve it: ", el("code", {}, view.bring_in)),
  ];
}

function members(view) {
  const weighted = view.members.some((member) => member.weight != null);
  const line = (member) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, member.name),
      weighted && el("td", {}, member.weight == null ? "–" : short(member.weight)),
      el("td", {}, member.adapters.length ? member.adapters.map(adapter) : "the base itself"),
    );
  return table("Members of the active version", ["Member", ...(weighted ? ["Weight"] : []), "Adapter and where it came from"], view.members.map(line));
}

function adapter(each) {
  const when = each.swapped_by ? `swapped in ${moment(each.swapped_at)} by ${each.swapped_by}` : "with the bundle";
  return el("div", { class: "origin" }, el("span", {}, each.adapter), el("code", { title: each.digest }, digest(each.digest)), el("small", {}, `${each.uri ?? "place not recorded"}, ${when}`));
}

function versions(view) {
  const line = (each) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, each.version),
      el("td", {}, each.role ? el("span", { class: each.role === "active" ? "chip strong" : "chip" }, each.role) : "not loaded"),
      el("td", {}, each.loaded_on.length ? each.loaded_on.join(", ") : "nowhere"),
      el("td", {}, el("small", {}, `${each.source}, ${moment(each.created)}`)),
    );
  const lines = [...view.versions].sort((one, other) => other.version - one.version).map(line);
  const older = lines.length > VERSIONS_SHOWN && el("details", {}, el("summary", {}, counted(lines.length - VERSIONS_SHOWN, "earlier version")), table("Earlier versions", ["Version", "Role", "Loaded on", "Came from"], lines.slice(VERSIONS_SHOWN)));
  return [table("Versions", ["Version", "Role", "Loaded on", "Came from"], lines.slice(0, VERSIONS_SHOWN)), older];
}

function table(caption, names, lines) {
  return el(
    "div",
    { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, lines)),
  );
}

function showHistory(audit) {
  const place = byId("history");
  const sign = JSON.stringify(audit.slice(0, 30));
  if (place.dataset.sign === sign) return;
  place.dataset.sign = sign;
  const line = (entry) =>
    el(
      "tr",
      {},
      el("td", {}, moment(entry.at)),
      el("th", { scope: "row" }, `${entry.ensemble}: ${entry.action}`),
      el("td", {}, entry.from == null && entry.to == null ? "" : `${entry.from ?? "–"} → ${entry.to ?? "–"}`),
      el("td", {}, el("span", { class: FAILED.test(entry.outcome) ? "chip apart" : "chip" }, entry.outcome), entry.reason && el("small", {}, ` ${entry.reason}`)),
      el("td", {}, el("small", {}, entry.actor)),
    );
  fill(place, audit.length ? table("The latest changes", ["When", "What", "Versions", "Outcome", "Who"], audit.slice(0, 30).map(line)) : el("p", { class: "empty" }, "No version has been changed yet."));
}

/** Asks whether to go on; the answer is a promise of true or false. */
function confirmed(title, sentence, act) {
  return new Promise((resolve) => {
    const dialog = el(
      "dialog",
      { "aria-labelledby": "confirm-title", close: () => (dialog.remove(), resolve(dialog.returnValue === "yes")) },
      el("h2", { id: "confirm-title" }, title),
      el("p", {}, sentence),
      el("div", { class: "actions" }, el("button", { type: "button", class: "main", click: () => dialog.close("yes") }, act), el("button", { type: "button", class: "quiet", click: () => dialog.close("") }, "Cancel")),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
