// The form of "Ask": who answers, to what, and how it is fused. What comes back is drawn elsewhere.

import { byId, el, fill, say } from "./dom.js";
import { Images } from "./images.js";
import { drawPredictions } from "./predictions.js";
import { get, post, ServerError } from "./server.js";
import { counted } from "./words.js";
import { Conversation } from "./writing.js";

const PAIR = "|";
/** The methods that choose among whole answers: their tokens have no log-probabilities. */
const WHOLE = ["vote", "mbr"];

/** Wires the form, and returns what loads the names that can be asked. */
export function startAsking() {
  const form = new Form();
  return { refresh: () => form.refresh() };
}

class Form {
  constructor() {
    this.models = [];
    this.weights = new Map();
    this.conversation = new Conversation(byId("answers"));
    this.images = new Images((sentence) => say(byId("ask-error"), sentence));
    this.aborting = null;
    byId("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("input").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask-form").requestSubmit();
    });
    byId("model").addEventListener("change", () => this.show());
    for (const kind of document.getElementsByName("kind")) kind.addEventListener("change", () => this.show());
    byId("stop").addEventListener("click", () => this.aborting?.abort());
    byId("clear").addEventListener("click", () => this.clear());
  }

  /** Loads the names anew, and keeps the choice where it still exists. */
  async refresh() {
    if (this.aborting) return;
    try {
      const { data } = await get("/v1/models");
      this.models = data;
      await this.loadWeights();
      this.fillModels();
      say(byId("ask-error"), data.length ? null : "This server has no ensemble to ask yet: it is starting, or its bundle has none.");
    } catch (error) {
      say(byId("ask-error"), error.message);
    }
  }

  /** Weights are the controller's to tell; without it the page asks all the same. */
  async loadWeights() {
    const { data } = await get("/v1/ensembles").catch(() => ({ data: [] }));
    this.weights = new Map(
      data.map((each) => [`${each.name}@${each.active_version}`, new Map(each.members.map((m) => [m.name, m.weight]))]),
    );
  }

  fillModels() {
    const select = byId("model");
    const before = select.value;
    const groups = byEnsemble(this.models);
    const options = [...groups].map(([name, entries]) =>
      el("optgroup", { label: name }, entries.filter((each) => !/@.*\//.test(each.id)).map((each) => el("option", { value: each.id }, named(each)))),
    );
    fill(select, options);
    if (this.models.some((each) => each.id === before)) select.value = before;
    select.disabled = byId("send").disabled = !this.models.length;
    this.show();
  }

  get model() {
    return this.models.find((each) => each.id === byId("model").value);
  }

  get writes() {
    return this.model?.task === "generation";
  }

  get kind() {
    return document.querySelector("[name=kind]:checked").value;
  }

  /** Shows the fields that the chosen ensemble has a use for. */
  show() {
    const model = this.model;
    if (!model) return;
    byId("model-note").textContent = `${model.task}, ${counted(model.members.length, "member")}: ${model.members.join(", ")}`;
    const select = byId("method");
    const before = select.value;
    const own = model.methods[0];
    fill(select, model.methods.map((each) => el("option", { value: each }, each === own ? `${each} (its own)` : each)));
    if (model.methods.includes(before) && this.shownFor === model.root) select.value = before;
    this.shownFor = model.root;
    select.disabled = !model.methods.length;
    byId("method-field").hidden = !model.methods.length;
    byId("kind-field").hidden = byId("writing-fields").hidden = !this.writes;
    const paired = byId("pairs-field");
    if (paired.hidden || model.pairs !== null) byId("pairs").checked = model.pairs === true;
    paired.hidden = this.writes || model.pairs === false;
    this.images.show(!this.writes || this.kind === "chat");
    byId("together-field").hidden = this.writes;
    byId("input-name").textContent = !this.writes ? "Inputs, one a line" : this.kind === "chat" ? "Message" : "Text to complete";
    byId("send").textContent = this.writes && this.kind === "chat" ? "Send" : "Ask";
    byId("clear").textContent = this.writes && this.kind === "chat" ? "New chat" : "Clear";
  }

  clear() {
    this.aborting?.abort();
    this.conversation.clear();
    this.images.clear();
    byId("no-answers").hidden = false;
    say(byId("ask-error"), null);
    byId("input").focus();
  }

  async ask() {
    if (this.aborting || !this.model) return;
    say(byId("ask-error"), null);
    this.aborting = new AbortController();
    this.busy(true);
    byId("ask-said").textContent = "Asked.";
    try {
      byId("ask-said").textContent = await (this.writes ? this.write() : this.predict());
    } catch (error) {
      const stopped = error.name === "AbortError";
      byId("ask-said").textContent = stopped ? "Stopped." : "";
      if (!stopped) say(byId("ask-error"), error instanceof ServerError ? error.message : `The page failed: ${error.message}`);
    } finally {
      this.aborting = null;
      this.busy(false);
    }
  }

  busy(running) {
    byId("stop").hidden = !running;
    byId("send").disabled = running;
    byId("answers").setAttribute("aria-busy", running);
    if (running) byId("no-answers").hidden = true;
  }

  /** The fusion that was chosen, where it is not the ensemble's own. */
  get fusion() {
    const chosen = byId("method").value;
    return chosen && chosen !== this.model.methods[0] ? { method: chosen } : {};
  }

  async predict() {
    const model = this.model;
    const inputs = byId("input").value.split("\n").filter((line) => line.trim());
    const images = this.images.chosen;
    if (!inputs.length && !images.length) throw new ServerError("Type at least one input, or choose an image.");
    const texts = byId("pairs").checked ? inputs.map(pair) : inputs;
    const asked = images.length && byId("together").checked ? together(inputs, images) : [...texts, ...images];
    const body = { model: model.id, input: asked.map(sent), return_members: true, ...(this.fusion.method ? { fusion: this.fusion } : {}) };
    const answer = await post("/v1/predict", body, this.aborting.signal);
    drawPredictions(byId("answers"), asked, answer, {
      method: this.fusion.method ?? model.methods[0],
      members: model.members.length,
      weights: this.fusion.method ? new Map() : (this.weights.get(answer.model) ?? new Map()),
    });
    return `${counted(answer.data.length, "answer")} by ${answer.model}.`;
  }

  async write() {
    const input = byId("input").value;
    if (!input.trim()) throw new ServerError("Type a text first.");
    const [most, temperature] = [byId("max-tokens").valueAsNumber, byId("temperature").valueAsNumber];
    const asked = { model: this.model.id, max_tokens: most, temperature, byToken: !WHOLE.includes(byId("method").value) };
    const fusion = this.model.methods.length ? { fusion: { ...this.fusion, return_members: true } } : {};
    const images = this.images.chosen;
    const answering = this.conversation.ask(this.kind, input, images, { ...asked, ...fusion }, this.aborting.signal);
    if (this.kind === "chat") {
      byId("input").value = "";
      this.images.clear();
    }
    try {
      return await answering;
    } catch (error) {
      if (this.kind === "chat" && !byId("input").value) {
        byId("input").value = input;
        this.images.put(images);
      }
      throw error;
    }
  }
}

function named(entry) {
  if (entry.id.includes("/")) return `${entry.id} (this member alone)`;
  return entry.id.includes("@") ? `${entry.id} (this version)` : `${entry.id} (active: ${entry.root})`;
}

function pair(line) {
  const [text, ...rest] = line.split(PAIR);
  if (!rest.length) throw new ServerError(`A pair needs its two texts with “${PAIR}” between them; this line has one: ${line}`);
  return { text: text.trim(), text_pair: rest.join(PAIR).trim() };
}

/** Returns each image with the line of its number as its text. */
function together(lines, images) {
  if (lines.length !== images.length) throw new ServerError(`Type one line for each image: there are ${counted(lines.length, "line")} and ${counted(images.length, "image")}.`);
  return images.map((each, place) => ({ ...each, text: lines[place] }));
}

/** Returns an input as the server takes it. */
function sent(input) {
  if (!input.url) return input;
  return input.text ? { image: input.url, text: input.text } : { image: input.url };
}

function byEnsemble(models) {
  const groups = new Map();
  for (const each of models) {
    const [name] = each.id.split(/[@/]/);
    groups.set(name, [...(groups.get(name) ?? []), each]);
  }
  return groups;
}
