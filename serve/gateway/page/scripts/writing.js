// Text that an ensemble writes: completions, and chats with their history.

import { el } from "./dom.js";
import { picture } from "./images.js";
import { events } from "./server.js";
import { TokenStrip } from "./tokens.js";
import { counted, percent } from "./words.js";

/** What was asked and written so far. */
export class Conversation {
  constructor(place) {
    this.place = place;
    this.messages = [];
  }

  clear() {
    this.messages = [];
    this.place.replaceChildren();
  }

  /** Asks, draws the answer as it comes, and returns a sentence about it. A message that has no answer is not part of
   * the history. `images` come before the text of a chat's message. `options` are fields of the request, and `byToken`:
   * whether log-probabilities can be had. */
  async ask(kind, input, images, options, signal) {
    const turn = new Turn(kind, input, images);
    // A chat reads downwards; single questions stand with the newest on top.
    if (kind === "chat") this.place.append(turn.node);
    else this.place.prepend(turn.node);
    turn.node.scrollIntoView({ block: "nearest" });
    const question = { role: "user", content: images.length ? parts(input, images) : input };
    try {
      for await (const document of events(...request(kind, [...this.messages, question], input, options), signal)) turn.take(document);
      turn.end();
    } catch (error) {
      if (!turn.text) turn.node.remove();
      else turn.end(error.name === "AbortError" ? "stopped" : "broken off");
      throw error;
    } finally {
      if (kind === "chat" && turn.text) this.messages.push(question, { role: "assistant", content: turn.text });
    }
    return `Written by ${turn.model}: ${turn.text}`;
  }
}

function parts(text, images) {
  return [...images.map(({ url }) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
}

function request(kind, messages, input, { byToken, ...options }) {
  const streamed = { ...options, stream: true, stream_options: { include_usage: true } };
  if (kind === "chat") return ["/v1/chat/completions", { ...streamed, messages, ...(byToken ? { logprobs: true, top_logprobs: 1 } : {}) }];
  return ["/v1/completions", { ...streamed, prompt: input, ...(byToken ? { logprobs: 1 } : {}) }];
}

/** One question and its answer. */
class Turn {
  constructor(kind, input, images) {
    this.text = "";
    this.model = "";
    this.reports = [];
    this.began = performance.now();
    this.strip = new TokenStrip();
    this.footer = el("p", { class: "note" }, "Waiting for the first token.");
    this.choices = el("div", {});
    this.node = el(
      "article",
      { class: `card turn ${kind}` },
      el("h3", { class: "input" }, ...images.map(picture), input),
      this.strip.node,
      this.choices,
      this.footer,
    );
  }

  /** Takes one event of the stream. */
  take(document) {
    this.model = document.model ?? this.model;
    this.usage = document.usage ?? this.usage;
    this.absent = document.absent_members ?? this.absent;
    const [choice] = document.choices ?? [];
    if (!choice) return;
    const text = choice.text ?? choice.delta?.content ?? "";
    this.text += text;
    if ("agreement" in choice) this.choices.append(wholeAnswers(choice));
    this.reports.push(...reportsOf(choice));
    // A chat's first event, which names the role alone, brings the report of the first token already.
    this.strip.add(tokensOf(choice, text).map((token) => ({ ...token, ...this.reports.shift() })));
    this.finish = choice.finish_reason ?? this.finish;
    if (text) this.footer.textContent = this.model;
  }

  /** Says how it ended. */
  end(how) {
    const seconds = (performance.now() - this.began) / 1000;
    const why = how ?? { length: "the limit of tokens is reached", stop: "it has ended" }[this.finish] ?? this.finish;
    const written = this.usage ? `${counted(this.usage.completion_tokens, "token")} in ${seconds.toFixed(1)} s; ` : "";
    const absent = this.absent?.length ? ` Absent: ${this.absent.join(", ")}.` : "";
    this.footer.textContent = `${this.model}: ${written}${why}.${absent}`;
    this.strip.end(this.text);
  }
}

/** What the members thought of the tokens since the last event, in order. */
function reportsOf(choice) {
  return (choice.disagreement ?? []).map((disagreement, place) => ({
    disagreement,
    members: (choice.members ?? []).map((member) => ({ name: member.name, logprob: member.token_logprobs[place] })),
  }));
}

/** The tokens of one event. */
function tokensOf(choice, text) {
  const chat = choice.logprobs?.content;
  const names = chat ? chat.map((each) => each.token) : (choice.logprobs?.tokens ?? []);
  const logprobs = chat ? chat.map((each) => each.logprob) : (choice.logprobs?.token_logprobs ?? []);
  // Bytes of half a character are no text yet: then the event is one piece.
  const pieces = names.length && names.join("") === text ? names : names.map((_, place) => (place === names.length - 1 ? text : ""));
  if (!names.length) return text ? [{ text }] : [];
  return pieces.map((piece, place) => ({ text: piece, logprob: logprobs[place] }));
}

/** Whole answers of members, of which one was given. */
function wholeAnswers(choice) {
  return el(
    "div",
    { class: "whole" },
    el("p", {}, `Agreement ${percent(choice.agreement)}`),
    choice.members?.map((member) =>
      el(
        "blockquote",
        { class: member.agrees ? "" : "apart" },
        el("strong", {}, member.name, " "),
        el("span", { class: member.agrees ? "chip" : "chip apart" }, member.agrees ? "agrees" : "differs"),
        el("p", {}, member.text),
      ),
    ),
  );
}
