// The form that starts a swap of one ensemble: what changes, and how traffic moves.

import { el, fill, say } from "./dom.js";
import { change } from "./server.js";

const HELP = {
  immediate: "The new version answers as soon as every engine has loaded and checked it.",
  shadow: "The new version is asked a share of the requests again; clients never see its answers.",
  canary: "The new version answers a share of the requests until its gates decide.",
};
const GATES = [
  { name: "min_requests", says: "Requests it must answer", value: "100", min: 1, step: 1 },
  { name: "max_error_rate", says: "Error rate at most", value: "0.01", min: 0, max: 1 },
  { name: "min_agreement", says: "Agreement at least", value: "", min: 0, max: 1 },
  { name: "max_latency_ratio", says: "Latency at most, as a multiple", value: "", min: 0 },
  { name: "max_seconds", says: "Seconds until it is given up", value: "", min: 1 },
];

export class SwapForm {
  constructor(begun) {
    this.begun = begun;
    this.error = el("p", { class: "notice bad", role: "alert", hidden: true });
    this.fields = el("div", {});
    this.send = el("button", { type: "submit", class: "main" }, "Start");
    const form = el("form", { submit: (event) => this.submit(event), autocomplete: "off", class: "form" }, this.fields, this.error, el("div", { class: "actions" }, this.send));
    this.node = el("details", { class: "swap" }, el("summary", {}, "Swap adapters"), form);
  }

  /** Shows the fields of an ensemble's members. What is typed stays while the members are the same. */
  show(view) {
    this.view = view;
    const sign = [view.name, view.fusion_fit.state, ...view.members.map((member) => member.name), ...view.versions.map((each) => each.version)].join(" ");
    if (this.sign === sign || (this.sign && this.node.open && this.node.contains(document.activeElement))) return;
    this.sign = sign;
    this.inputs = new Map(view.members.map((member) => [member.name, el("input", { type: "text", spellcheck: "false", placeholder: "file:///…, s3://…, gs://…, hf://…" })]));
    this.version = el("select", {}, el("option", { value: "" }, "None: new adapters, as below"), others(view).map((number) => el("option", { value: number }, `Version ${number}`)));
    this.version.addEventListener("change", () => (adapters.hidden = this.version.value !== ""));
    const adapters = el(
      "fieldset",
      {},
      el("legend", {}, "New adapters; leave empty what stays"),
      [...this.inputs].map(([name, input]) => el("label", {}, el("span", {}, "Member ", el("strong", {}, name)), input)),
      this.check("stale", "Keep the fitted fusion although it belongs to other adapters", { hidden: view.fusion_fit.state === "none" }),
    );
    fill(this.fields, el("label", {}, "A version that exists", this.version), adapters, this.strategyFields(view.name));
  }

  strategyFields(name) {
    this.gates = new Map(GATES.map((gate) => [gate.name, el("input", { type: "number", min: gate.min, max: gate.max, step: gate.step ?? "any", value: gate.value })]));
    this.share = el("input", { type: "number", min: 0, max: 1, step: "any", value: "0.1", required: true });
    const help = el("p", { class: "note" }, HELP.immediate);
    const trial = el(
      "div",
      { class: "gates", hidden: true },
      el("label", {}, "Share of the requests", this.share),
      GATES.map((gate) => el("label", {}, gate.says, this.gates.get(gate.name))),
      this.check("auto", "Make it active once its gates are passed", { checked: true }),
    );
    this.strategies = Object.keys(HELP).map((kind) => {
      const chosen = () => ((trial.hidden = kind === "immediate"), (help.textContent = HELP[kind]));
      return el("input", { type: "radio", name: `strategy-${name}`, value: kind, checked: kind === "immediate", change: chosen });
    });
    const radios = this.strategies.map((radio) => el("label", {}, radio, ` ${radio.value[0].toUpperCase()}${radio.value.slice(1)}`));
    return el("fieldset", { class: "choices" }, el("legend", {}, "How traffic moves"), radios, help, trial);
  }

  check(field, words, { checked = false, hidden = false }) {
    this[field] = el("input", { type: "checkbox", checked });
    return el("label", { class: "check", hidden }, this[field], ` ${words}`);
  }

  async submit(event) {
    event.preventDefault();
    say(this.error, null);
    this.send.disabled = true;
    this.send.textContent = "Verifying";
    try {
      this.begun(await change(`/v1/ensembles/${encodeURIComponent(this.view.name)}/swap`, this.body()));
      this.node.open = false;
      for (const input of this.inputs.values()) input.value = "";
    } catch (error) {
      say(this.error, error.message);
    } finally {
      this.send.disabled = false;
      this.send.textContent = "Start";
    }
  }

  /** The request. It names the version that the reader saw as active, so that nothing else is replaced. */
  body() {
    const common = { expected_version: this.view.active_version, strategy: this.strategy() };
    if (this.version.value) return { version: Number(this.version.value), ...common };
    const members = Object.fromEntries([...this.inputs].flatMap(([name, input]) => (input.value.trim() ? [[name, places(input.value)]] : [])));
    if (!Object.keys(members).length) throw new Error("Give at least one member a new adapter, or choose a version.");
    return { members, ...common, ...(this.stale.checked ? { allow_stale_fusion: true } : {}) };
  }

  strategy() {
    const kind = this.strategies.find((radio) => radio.checked).value;
    if (kind === "immediate") return { kind };
    const gates = Object.fromEntries([...this.gates].flatMap(([name, input]) => (input.value === "" ? [] : [[name, input.valueAsNumber]])));
    return { kind, share: this.share.valueAsNumber, gates, auto_promote: this.auto.checked };
  }
}

function others(view) {
  return view.versions.map((each) => each.version).filter((number) => number !== view.active_version).sort((one, other) => other - one);
}

/** One URI, or two with white space between them: a LoRA, and a prefix or prompt adapter. */
function places(text) {
  const uris = text.trim().split(/\s+/);
  return uris.length === 1 ? uris[0] : uris;
}
