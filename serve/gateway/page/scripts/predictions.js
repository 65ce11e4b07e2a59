// Draws the answers of a prediction: the fused one, each member's beside it, and where they stand on every label.

import { bar, el, svg } from "./dom.js";
import { picture } from "./images.js";
import { counted, percent, short } from "./words.js";

const LABELS_SHOWN = 8;
const OPEN = 3;

/** Puts the answers to `inputs` before those that are there: texts, pairs of texts, and images with `name`, `url` and
 * perhaps a `text`. `asked`: the fusion `method`, how many `members` there are, and their `weights` by name. */
export function drawPredictions(place, inputs, answer, asked) {
  const cards = answer.data.map((row) => card(inputs[row.index], row, { ...asked, open: answer.data.length <= OPEN }));
  const absent = answer.absent_members?.length ? ` Absent: ${answer.absent_members.join(", ")}.` : "";
  const said = `${answer.model}, ${asked.method ?? "one member"}. ${counted(answer.usage.prompt_tokens, "token")}, ${counted(answer.usage.member_tokens, "token")} of all members.${absent}`;
  place.prepend(el("section", { class: "asked" }, el("p", { class: "note" }, said), cards));
}

function card(input, row, asked) {
  const body = "value" in row ? drawValue(row, asked) : drawLabels(row, asked);
  return el("article", { class: "card answer" }, el("h3", { class: "input" }, shown(input)), body);
}

function shown(input) {
  if (typeof input === "string") return input;
  return input.url ? [picture(input), input.text ?? ""] : `${input.text} | ${input.text_pair}`;
}

// One label, or several.

function drawLabels(row, asked) {
  const members = row.members ?? [];
  const said = spoken(row);
  return [
    el(
      "p",
      { class: "said" },
      el("strong", {}, said),
      "label" in row && el("span", { class: "sure" }, percent(row.probabilities[row.label])),
      row.abstained && el("span", { class: "chip warn" }, "abstained: too uncertain"),
      row.members_asked != null && el("span", { class: "chip" }, `asked ${row.members_asked} of ${counted(asked.members, "member")}`),
    ),
    members.length > 1 && voices(row, members, said, asked),
    el("div", { class: "measures" }, entropies(row, members)),
    everyLabel(row, members, asked.open),
  ];
}

function spoken(row) {
  if ("label" in row) return row.label;
  return row.labels.length ? row.labels.join(", ") : "none of the labels";
}

function voices(row, members, said, asked) {
  const lines = members.map((member) => {
    const own = spoken(member);
    const agrees = own === said;
    return el(
      "tr",
      { class: agrees ? "" : "apart" },
      el("th", { scope: "row" }, member.name, weight(asked.weights.get(member.name))),
      el("td", {}, own, !agrees && el("span", { class: "chip apart" }, "differs")),
      el("td", { class: "amount" }, bar(sureness(member), agrees ? "" : "apart"), el("span", {}, percent(sureness(member)))),
    );
  });
  return el(
    "table",
    { class: "voices" },
    el("caption", { class: "unseen" }, "The fused answer and each member's"),
    el("thead", {}, el("tr", {}, ["Voice", "Answer", "Confidence"].map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      el(
        "tr",
        { class: "fused" },
        el("th", { scope: "row" }, "Together", el("small", {}, asked.method ?? "")),
        el("td", {}, said),
        el("td", { class: "amount" }, bar(sureness(row), "fused"), el("span", {}, percent(sureness(row)))),
      ),
      lines,
    ),
  );
}

function weight(value) {
  return value == null ? null : el("small", {}, `weight ${short(value)}`);
}

/** How sure an answer is: of the label, or of the least sure of several labels. */
function sureness(row) {
  if ("label" in row) return row.probabilities[row.label];
  const own = row.labels.length ? row.labels.map((label) => row.probabilities[label]) : Object.values(row.probabilities).map((p) => 1 - p);
  return Math.min(...own);
}

/** Entropy and disagreement beside the most that they could be. */
function entropies(row, members) {
  const labels = Object.keys(row.probabilities).length;
  const most = "label" in row ? Math.log(labels) : labels * Math.LN2;
  const furthest = Math.min(most, Math.log(Math.max(members.length, 1)) * ("label" in row ? 1 : labels));
  return [
    measure("Entropy", "how unsure the answer is", row.entropy, most),
    members.length > 1 && measure("Disagreement", "how far the members are apart", row.disagreement, furthest),
  ];
}

function measure(name, meaning, nats, most) {
  return el(
    "p",
    { class: "measure" },
    el("span", { title: meaning }, name),
    bar(most > 0 ? nats / most : 0),
    el("span", {}, `${short(nats)} of ${short(most)} nats`),
  );
}

/** Every label with the fused probability as a bar, and a mark where each member stands; drawn when it is opened. */
function everyLabel(row, members, open) {
  const node = el("details", { class: "labels", open, toggle: () => node.childElementCount === 1 && node.append(...drawn()) }, el("summary", {}, "Every label"));
  const drawn = () => {
    const labels = Object.entries(row.probabilities).sort((one, other) => other[1] - one[1]);
    const rest = labels.slice(LABELS_SHOWN).map(line);
    return [
      el("p", { class: "note" }, members.length ? "Bar: together. Marks: each member." : "Bar: the answer."),
      el("ul", {}, labels.slice(0, LABELS_SHOWN).map(line)),
      rest.length ? el("details", {}, el("summary", {}, `${rest.length} more`), el("ul", {}, rest)) : "",
    ];
  };
  const line = ([label, fused]) =>
    el("li", {}, el("span", { class: "name" }, label), marked(fused, members.map((member) => member.probabilities[label])), el("span", {}, percent(fused)));
  if (open) node.append(...drawn());
  return node;
}

function marked(fused, others) {
  const line = bar(fused, "fused tall");
  for (const share of others) line.append(el("b", { vars: { "--at": `${share * 100}%` } }));
  return line;
}

// A value.

function drawValue(row, asked) {
  const members = row.members ?? [];
  return [
    el("p", { class: "said" }, el("strong", {}, short(row.value)), el("span", { class: "sure" }, `± ${short(row.std)} between the members`)),
    members.length > 0 && numberLine(row, members),
    members.length > 0 &&
      el(
        "ul",
        { class: "plain" },
        members.map((member) => el("li", {}, el("strong", {}, member.name), ` ${short(member.value)} `, weight(asked.weights.get(member.name)))),
      ),
  ];
}

function numberLine(row, members) {
  const values = [row.value - row.std, row.value + row.std, ...members.map((member) => member.value)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (value) => 20 + (360 * (value - low)) / (high - low || 1);
  const said = `Together ${short(row.value)}; members from ${short(Math.min(...members.map((m) => m.value)))} to ${short(Math.max(...members.map((m) => m.value)))}.`;
  return svg(
    "svg",
    { viewBox: "0 0 400 46", class: "line", role: "img", "aria-label": said },
    svg("path", { class: "axis", d: "M20 24H380" }),
    svg("rect", { class: "spread", x: x(row.value - row.std), y: 18, width: Math.max(1, x(row.value + row.std) - x(row.value - row.std)), height: 12, rx: 6 }),
    members.map((member) => svg("circle", { class: "member", cx: x(member.value), cy: 24, r: 5 }, svg("title", {}, `${member.name} ${short(member.value)}`))),
    svg("path", { class: "together", d: `M${x(row.value)} 10V38` }),
  );
}
