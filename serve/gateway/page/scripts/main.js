// Starts the page: the tabs, the state of the server, and the dialog for tokens.

import { startAsking } from "./ask.js";
import { byId } from "./dom.js";
import { showReports } from "./report.js";
import { tokens } from "./server.js";
import { startVersions } from "./versions.js";
import { startWatching } from "./watch.js";

const STATUS_EVERY = 5000;
const tabs = [...document.querySelectorAll("[role=tab]")];
const asking = startAsking();
const shown = { ask: () => asking.refresh(), versions: startVersions(), watch: startWatching(), report: showReports };

function open(tab, { focus = false } = {}) {
  for (const each of tabs) {
    const selected = each === tab;
    each.setAttribute("aria-selected", selected);
    each.tabIndex = selected ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !selected;
  }
  const name = tab.getAttribute("aria-controls");
  history.replaceState(null, "", `#${name}`);
  document.title = `${tab.textContent} · Choir`;
  if (focus) tab.focus();
  shown[name]();
}

function startTabs() {
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const goal = { Home: 0, End: tabs.length - 1 }[event.key] ?? place + (steps[event.key] ?? NaN);
      if (Number.isNaN(goal)) return;
      event.preventDefault();
      open(tabs[(goal + tabs.length) % tabs.length], { focus: true });
    });
  }
  open(byId(`tab-${location.hash.slice(1)}`) ?? tabs[0]);
}

async function showStatus() {
  const status = byId("status");
  const response = await fetch("/ready", { cache: "no-store" }).catch(() => null);
  const body = await response?.json().catch(() => null);
  const [state, words, said] = !response
    ? ["gone", "No answer", "The server does not answer. This page asks again every 5 seconds."]
    : !response.ok
      ? ["waiting", "Not ready", body?.error?.message ?? ""]
      : body?.degraded
        ? ["waiting", "Degraded", "The controller is away: requests are answered, versions do not change."]
        : ["ready", "Ready", "The server answers."];
  if (state === "ready" && ["gone", "waiting"].includes(status.dataset.state)) asking.refresh();
  status.dataset.state = state;
  status.title = said;
  if (status.textContent !== words) status.textContent = words;
}

function startAccess() {
  const dialog = byId("access");
  const keep = (reading, admin) => {
    tokens.keep(reading.trim(), admin.trim());
    dialog.close();
    open(tabs.find((tab) => tab.getAttribute("aria-selected") === "true"));
  };
  byId("open-access").addEventListener("click", () => {
    byId("token").value = tokens.reading;
    byId("admin-token").value = tokens.admin;
    dialog.showModal();
  });
  byId("close-access").addEventListener("click", () => dialog.close());
  byId("forget").addEventListener("click", () => keep("", ""));
  byId("access-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keep(byId("token").value, byId("admin-token").value);
  });
}

startTabs();
startAccess();
showStatus();
setInterval(() => document.hidden || showStatus(), STATUS_EVERY);
