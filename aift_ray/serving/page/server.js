// Requests to the server that the page came from.

import { known } from "./words.js";

// an error in the midst of a stream has no status of its own
const STATUS_OF_CODE = { timeout: 504, engine_failed: 500 };

/** What went wrong: the name of a text of the page, its filling, the server's own words. */
export class Failure extends Error {
  constructor(word, detail = "", filling = {}) {
    super(detail || word);
    this.word = word;
    this.detail = detail;
    this.filling = filling;
  }
}

/** Names of the models: the base first, then the adapters. */
export async function models(key) {
  const response = await ask("v1/models", key, {});
  return (await response.json()).data.map((model) => model.id);
}

/**
 * The parts of an answer as they come, each with any of `text`, `thought`, `finish`, `tokens` and
 * `probabilities`: [{token, p, others: [[token, p]]}].
 *
 * The signal ends it without an error.
 */
export async function* answer(key, body, signal) {
  try {
    const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await ask("v1/chat/completions", key, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(wanted),
      signal,
    });
    for await (const event of events(response.body)) {
      if (event.error) throw failureOf(STATUS_OF_CODE[event.error.code] ?? 500, event.error);
      const [choice] = event.choices;
      yield {
        text: choice?.delta.content ?? "",
        thought: choice?.delta.reasoning_content ?? "",
        probabilities: choice?.logprobs?.content?.map(probability) ?? [],
        finish: choice?.finish_reason,
        tokens: event.usage?.completion_tokens,
      };
    }
  } catch (error) {
    if (signal.aborted) return;
    throw error instanceof Failure ? error : new Failure("error_cut");
  }
}

function probability({ token, logprob, top_logprobs: others }) {
  const p = rounded(Math.exp(logprob));
  return { token, p, others: others.map((each) => [each.token, rounded(Math.exp(each.logprob))]) };
}

// what is shown; a conversation that is kept must stay small
const rounded = (p) => Number(p.toPrecision(3));

async function ask(path, key, options) {
  const headers = { ...options.headers };
  // a header holds bytes; a key may hold any character
  const bytes = new TextEncoder().encode(key ?? "");
  if (key) headers.Authorization = `Bearer ${String.fromCharCode(...bytes)}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure("error_network");
  }
  if (response.ok) return response;
  // what stands between the page and the server may answer in another shape
  const body = await response.json().catch(() => null);
  throw failureOf(response.status, body?.error, response.headers.get("Retry-After"));
}

async function* events(stream) {
  let rest = "";
  for await (const piece of pieces(stream.pipeThrough(new TextDecoderStream()))) {
    const parts = (rest + piece).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
  throw new Failure("error_cut");
}

// not every browser can iterate over a stream
async function* pieces(stream) {
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

function failureOf(status, error, wait = null) {
  const detail = error?.message ?? "";
  if (error?.code === "context_length_exceeded") return new Failure("error_context", detail);
  if (status === 429 && /^\d+$/.test(wait ?? "")) {
    return new Failure("error_429_wait", detail, { seconds: wait });
  }
  const word = `error_${status}`;
  return known(word) ? new Failure(word, detail) : new Failure("error_other", detail, { status });
}
