// Makes elements. A text becomes a text node, never markup: labels and answers may hold anything.

const SVG = "http://www.w3.org/2000/svg";

/** Returns an element. `attributes`: a function listens to the event of that name, `vars` sets CSS variables, false or
 * null leaves an attribute out. */
export function el(name, attributes = {}, ...children) {
  return fitted(document.createElement(name), attributes, children);
}

/** Returns an element of a drawing. */
export function svg(name, attributes = {}, ...children) {
  return fitted(document.createElementNS(SVG, name), attributes, children);
}

/** Replaces all that is in `node`. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** Returns the element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Shows a sentence in an element that is hidden without one. */
export function say(node, sentence) {
  node.textContent = sentence ?? "";
  node.hidden = !sentence;
}

/** Returns a bar as wide as `share` (0 to 1). The number itself must stand beside it as text. */
export function bar(share, kind = "") {
  const width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return el("span", { class: `meter ${kind}`, "aria-hidden": "true" }, el("i", { vars: { "--width": width } }));
}

function fitted(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "vars") for (const [key, set] of Object.entries(value)) node.style.setProperty(key, set);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}
