// The conversation: turns of a question and an answer, of which one at most is under way.

import * as server from "./server.js";
import * as settings from "./settings.js";
import { say, text, translate } from "./words.js";

const find = (id) => document.getElementById(id);
const turns = [];
let host;
let current = null;

/**
 * Tell the conversation about its page.
 *
 * key: returns the API key; refused: called when it is refused; moved: called when the model is no
 * longer there; touch: whether a focus brings up a keyboard.
 */
export function build(page) {
  host = page;
}

/** Whether an answer is under way. */
export const running = () => current !== null;

/** End the answer that is under way; what there is of it stays. */
export const stop = () => current?.abort();

/** Forget the conversation. */
export function clear() {
  stop();
  idle();
  turns.length = 0;
  find("turns").replaceChildren();
  find("welcome").hidden = false;
}

/** Ask the model. */
export function ask(question) {
  const element = find("turn").content.cloneNode(true).firstElementChild;
  const turn = { question, answer: "", element };
  const part = (name) => element.querySelector(name);
  part(".question .text").textContent = question;
  part(".again").addEventListener("click", () => answer(turn));
  part(".copy").addEventListener("click", () => copy(turn));
  translate(element);
  turns.at(-1)?.element.querySelector(".again").setAttribute("hidden", "");
  turns.push(turn);
  find("turns").append(element);
  find("welcome").hidden = true;
  answer(turn);
}

async function copy(turn) {
  const word = (await copied(turn.answer)) ? "copied" : "not_copied";
  say(turn.element.querySelector(".copy"), word);
  say(find("spoken"), word);
}

async function copied(content) {
  try {
    await navigator.clipboard.writeText(content);
    return true;
  } catch {
    // over plain HTTP browsers have no clipboard but this
    return copiedBySelection(content);
  }
}

function copiedBySelection(content) {
  const pressed = document.activeElement;
  const area = document.createElement("textarea");
  Object.assign(area, { value: content, readOnly: true, className: "unseen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  pressed?.focus();
  return done;
}

async function answer(turn) {
  const sampling = settings.read();
  if (!sampling || current) return;
  const model = find("model").value;
  const stopper = new AbortController();
  const meter = new Meter();
  const shown = empty(turn, model);
  const body = { model, messages: messagesUpTo(turn), ...sampling };
  begin(stopper, turn);
  let failure = null;
  try {
    for await (const part of server.answer(host.key(), body, stopper.signal)) {
      meter.take(part);
      if (!part.text) continue;
      const follows = atEnd();
      if (!turn.answer) say(shown, null);
      turn.answer += part.text;
      shown.append(part.text);
      say(figuresOf(turn), "figures_live", meter.values());
      if (follows) toEnd();
    }
  } catch (error) {
    if (!(error instanceof server.Failure)) throw error;
    failure = error;
  }
  // of a conversation that was cleared there is nothing left to show
  if (!turns.includes(turn)) return;
  idle();
  end(turn, failure, meter, stopper.signal.aborted);
}

function empty(turn, model) {
  const { element } = turn;
  turn.answer = "";
  element.querySelector(".name").textContent = model;
  const shown = element.querySelector(".answer .text");
  say(shown, "waiting");
  const [sentence, detail] = element.querySelector(".answer .problem").children;
  say(sentence, null);
  detail.textContent = "";
  say(figuresOf(turn), null);
  return shown;
}

function messagesUpTo(turn) {
  const system = settings.system();
  // a question without an answer would break the alternation that templates ask for
  const past = turns.slice(0, turns.indexOf(turn)).filter((each) => each.answer);
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...past.flatMap((each) => [
      { role: "user", content: each.question },
      { role: "assistant", content: each.answer },
    ]),
    { role: "user", content: turn.question },
  ];
}

function begin(stopper, turn) {
  current = stopper;
  const { element } = turn;
  element.classList.add("running");
  element.querySelector(".answer").setAttribute("aria-busy", "true");
  say(find("spoken"), "answering");
  const pressed = document.activeElement;
  find("send").hidden = true;
  find("stop").hidden = false;
  // a button that vanishes must not take the focus with it
  if (pressed === find("send") || element.contains(pressed)) find("stop").focus();
  for (const name of [".again", ".copy"]) element.querySelector(name).hidden = true;
  toEnd();
}

function idle() {
  current = null;
  const hadFocus = document.activeElement === find("stop");
  find("send").hidden = false;
  find("stop").hidden = true;
  if (hadFocus) find(host.touch ? "log" : "message").focus();
}

function end(turn, failure, meter, stopped) {
  const { element } = turn;
  const follows = atEnd();
  const again = element.querySelector(".again");
  element.classList.remove("running");
  element.querySelector(".answer").setAttribute("aria-busy", "false");
  const copies = element.querySelector(".copy");
  const shown = element.querySelector(".answer .text");
  if (!turn.answer) say(shown, failure || stopped ? null : "empty");
  say(copies, "copy");
  copies.hidden = !turn.answer;
  say(again, failure ? "retry" : "again");
  again.hidden = turn !== turns.at(-1);
  say(figuresOf(turn), failure ? null : meter.word(stopped), meter.values());
  say(find("spoken"), null);
  if (failure) show(failure, element);
  else find("spoken").textContent = turn.answer || text("empty");
  if (follows) toEnd();
}

function show(failure, element) {
  const [sentence, detail] = element.querySelector(".answer .problem").children;
  say(sentence, failure.word, failure.filling);
  detail.textContent = failure.detail;
  if (failure.word === "error_401") host.refused(failure);
  if (failure.word === "error_404") host.moved();
}

const figuresOf = (turn) => turn.element.querySelector(".figures");

function atEnd() {
  const log = find("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function toEnd() {
  find("log").scrollTop = find("log").scrollHeight;
}

/** Counts tokens and the time that they took. */
class Meter {
  #start = performance.now();
  #first = null;
  #last = null;
  #parts = 0;
  #finish = null;
  #tokens = null;

  take(part) {
    this.#finish ??= part.finish;
    this.#tokens ??= part.tokens;
    if (!part.text) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#parts += 1;
  }

  /** The first token's time is the prompt's, so the rate is that of the tokens after it. */
  values() {
    const tokens = this.#tokens ?? this.#parts;
    const seconds = (this.#last - this.#first) / 1000;
    const rate = seconds > 0 ? ((tokens - 1) / seconds).toFixed(1) : "–";
    const wait = this.#first === null ? "–" : ((this.#first - this.#start) / 1000).toFixed(2);
    return { tokens: tokens.toLocaleString(), rate, wait };
  }

  word(stopped) {
    if (stopped) return "figures_stopped";
    return this.#finish === "length" ? "figures_length" : "figures";
  }
}
