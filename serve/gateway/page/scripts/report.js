// The tab "Report": where each ensemble's report is.

import { byId, el, fill, say } from "./dom.js";
import { get, text, tokens } from "./server.js";

/** Asks which ensembles have a report, and shows where it is. */
export async function showReports() {
  try {
    const { data } = await get("/v1/ensembles");
    const found = await Promise.all(data.map(async ({ name }) => entry(name, await page(name))));
    fill(byId("reports"), found.length ? found : el("p", { class: "empty" }, "This server has no ensemble yet."));
    say(byId("report-error"), null);
  } catch (error) {
    say(byId("report-error"), error.message);
  }
}

/** Returns the report's page, or null and why there is none. */
async function page(name) {
  try {
    return { page: await text(`/report/${encodeURIComponent(name)}`) };
  } catch (error) {
    if (error.status !== 404) throw error;
    return { reason: error.message };
  }
}

function entry(name, { page, reason }) {
  const way = page == null ? el("p", { class: "note" }, reason) : tokens.reading || tokens.admin ? saving(name, page) : link(name);
  return el("article", { class: "card row" }, el("h2", {}, name), way);
}

function link(name) {
  const place = `/report/${encodeURIComponent(name)}`;
  return el("a", { href: place, target: "_blank", rel: "noopener" }, `Open the report of ${name}`);
}

/** A link carries no token, so the page hands over what it has fetched with one. */
function saving(name, page) {
  const save = () => {
    const place = URL.createObjectURL(new Blob([page], { type: "text/html" }));
    el("a", { href: place, download: `${name}-report.html` }).click();
    URL.revokeObjectURL(place);
  };
  return el("button", { type: "button", click: save }, `Save the report of ${name}`);
}
