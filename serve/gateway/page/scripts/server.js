// Asks the server: JSON, streams of events and plain text. Whatever fails becomes a ServerError with a sentence.

/** What went wrong, as a sentence for the reader. `status` is 0 if the server did not answer. */
export class ServerError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The tokens that were typed in. sessionStorage ends with the tab. */
export const tokens = {
  get reading() {
    return sessionStorage.getItem("choir.token") ?? "";
  },
  get admin() {
    return sessionStorage.getItem("choir.admin-token") ?? "";
  },
  keep(reading, admin) {
    for (const [name, value] of [["choir.token", reading], ["choir.admin-token", admin]]) {
      if (value) sessionStorage.setItem(name, value);
      else sessionStorage.removeItem(name);
    }
  },
};

/** Returns the JSON document at a path. */
export async function get(path) {
  return (await asked(path, { headers: bearer(tokens.reading || tokens.admin) })).json();
}

/** Returns the text at a path. */
export async function text(path) {
  return (await asked(path, { headers: bearer(tokens.reading || tokens.admin) })).text();
}

/** Sends a request for an answer, and returns the document. */
export async function post(path, body, signal) {
  return (await asked(path, posted(body, tokens.reading || tokens.admin, signal))).json();
}

/** Asks for a change, with the admin token. */
export async function change(path, body) {
  return (await asked(path, posted(body, tokens.admin || tokens.reading))).json();
}

/** Yields the documents of a stream of events. Raises ServerError if it breaks off; aborting `signal` ends it. */
export async function* events(path, body, signal) {
  const response = await asked(path, posted(body, tokens.reading || tokens.admin, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read().catch((error) => {
      throw failed(error);
    });
    if (done) throw new ServerError("The answer broke off: the server closed the stream before its end.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const document = JSON.parse(data);
      if (document.error) throw new ServerError(document.error.message, 200, document.error.code);
      yield document;
    }
  }
}

function posted(body, token, signal) {
  const headers = { "content-type": "application/json", ...bearer(token) };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

function bearer(token) {
  return token ? { authorization: `Bearer ${token}` } : {};
}

async function asked(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options }).catch((error) => {
    throw failed(error);
  });
  if (response.ok) return response;
  throw await refusal(response);
}

function failed(error) {
  if (error.name === "AbortError" || error instanceof ServerError) return error;
  return new ServerError("The server does not answer: it has stopped, or the connection to it is gone.");
}

async function refusal(response) {
  const said = await response.json().then((body) => body.error, () => null);
  const sentence = said?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ServerError(sentence + advice(response), response.status, said?.code);
}

/** What to do about it, where the server's own sentence does not speak of this page. */
function advice(response) {
  const wait = response.headers.get("retry-after");
  if (response.status === 401) return " Type the token under “Tokens” above.";
  if ((response.status === 429 || response.status === 503) && wait) return ` Try again in ${wait} s.`;
  return "";
}
