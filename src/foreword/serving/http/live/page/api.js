// Requests to the server this page came from: its key, its errors, its event streams.

const SLOT = "foreword-key";
let key = recall();

function recall() {
  try {
    return sessionStorage.getItem(SLOT) ?? "";
  } catch {
    return ""; // storage is switched off: the key lives as long as the page
  }
}

export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(SLOT, value);
  } catch {
    // as above
  }
}

export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Fetch a path relative to this page. Throws `Refused` for any status that is not a success. */
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch {
    // not in the API's shape: the status has to do
  }
  throw new Refused(response.status, message, Number(response.headers.get("Retry-After")) || 0);
}

export function post(path, body, signal) {
  return call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

/** The data of each server-sent event. EventSource cannot send a key, so it is read by hand. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (rest + value).split(/\r?\n\r?\n/);
      rest = frames.pop();
      for (const frame of frames) {
        const lines = frame.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
