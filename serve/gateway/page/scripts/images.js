// The images that are asked about: chosen, dropped or pasted, and shown before they are sent.

import { byId, el, fill } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];

/** The images that are chosen, as data URLs. `tell` is called with a sentence about a file that is none. */
export class Images {
  constructor(tell) {
    this.chosen = [];
    this.tell = tell;
    const form = byId("ask-form");
    const field = byId("images");
    field.addEventListener("change", () => {
      this.add(field.files);
      field.value = "";
    });
    form.addEventListener("dragover", (event) => {
      if (this.shown && event.dataTransfer.types.includes("Files")) event.preventDefault();
    });
    form.addEventListener("drop", (event) => this.take(event, event.dataTransfer.files));
    form.addEventListener("paste", (event) => this.take(event, event.clipboardData.files));
  }

  get shown() {
    return !byId("images-field").hidden;
  }

  /** Shows the field, or hides it and forgets what was chosen. */
  show(shown) {
    byId("images-field").hidden = !shown;
    if (!shown) this.clear();
  }

  clear() {
    this.put([]);
  }

  put(images) {
    this.chosen = images;
    this.draw();
  }

  take(event, files) {
    if (!this.shown || !files.length) return;
    event.preventDefault();
    this.add(files);
  }

  async add(files) {
    this.tell(null);
    for (const file of [...files]) {
      if (TYPES.includes(file.type)) this.chosen.push({ name: file.name, url: await dataUrl(file) });
      else this.tell(`${file.name} is no PNG, JPEG or WebP.`);
    }
    this.draw();
  }

  draw() {
    fill(byId("pictures"), this.chosen.map((each) => el("li", {}, picture(each), this.remover(each))));
  }

  remover(image) {
    const remove = () => {
      this.chosen = this.chosen.filter((each) => each !== image);
      this.draw();
    };
    return el("button", { type: "button", class: "quiet", click: remove, "aria-label": `Remove ${image.name}` }, "Remove");
  }
}

/** Returns an image with its name. */
export function picture({ name, url }) {
  return el("figure", {}, el("img", { src: url, alt: name }), el("figcaption", { class: "note" }, name));
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
