// The conversation on the page: turns of a question and one answer or two, and what is under way.

import * as data from "./conversation.js";
import * as database from "./database.js";
import { touch } from "./keys.js";
import { Meter } from "./meter.js";
import * as server from "./server.js";
import * as settings from "./settings.js";
import { parted } from "./thoughts.js";
import { TurnView } from "./turn.js";
import { say, text } from "./words.js";

const find = (id) => document.getElementById(id);
const views = new Map();
const running = new Map();
let host;
let conversation = data.fresh();

/**
 * Tell the conversation about its page.
 *
 * key: returns the API key; models: those that are chosen, one or two; refused: called when the key
 * is refused; moved: when the model is no longer there; stored: when the conversation was stored.
 */
export function build(page) {
  host = page;
  database.onChange(followOtherTab);
  // a page that is left may not come back
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && isRunning()) save(conversation);
  });
}

/** Whether an answer is under way. */
export const isRunning = () => running.size > 0;

/** End the answers that are under way; what there is of them stays. */
export const stop = () => running.forEach((stopper) => stopper.abort());

/** The id of the conversation. */
export const current = () => conversation.id;

/** Show a conversation; none: begin a new one. */
export function open(wanted = data.fresh()) {
  stop();
  running.clear();
  idle();
  conversation = wanted;
  views.clear();
  show();
  toEnd();
}

/** Ask; whether that could be done. */
export function ask(question) {
  return send(data.path(conversation).at(-1) ?? conversation, question);
}

/** Show the answers again, after a change of what is shown of them. */
export const repaint = () => show();

function send(parent, question) {
  if (isRunning() || !settings.read()) return false;
  const turn = data.addTurn(parent, question, host.models().length);
  conversation.title ||= data.titleOf(question);
  show();
  const view = views.get(turn);
  turn.columns.forEach((_, column) => answer(view, column));
  toEnd();
  return true;
}

function again(view, column) {
  if (isRunning() || !settings.read()) return;
  const { turn } = view;
  // what was asked after an answer was asked after that answer
  if (turn.next.length) send(data.parentOf(conversation, turn), turn.question);
  else answer(view, column);
}

function show() {
  const turns = data.path(conversation);
  turns.forEach((turn, at) => {
    if (!views.has(turn)) views.set(turn, new TurnView(turn, turns[at - 1] ?? conversation, acts));
    views.get(turn).show(!turn.next.length, isRunning());
  });
  const elements = turns.map((turn) => views.get(turn).element);
  const list = find("turns");
  // those that are there already stay, and with them the focus and a selection
  for (const element of [...list.children]) if (!elements.includes(element)) element.remove();
  elements.forEach((element, at) => {
    if (list.children[at] !== element) list.insertBefore(element, list.children[at] ?? null);
  });
  find("welcome").hidden = turns.length > 0;
}

const acts = {
  again,
  edit: (turn, question) => send(data.parentOf(conversation, turn), question),
  changed: () => save(conversation),
  moved() {
    show();
    save(conversation);
  },
};

async function answer(view, column) {
  const { turn } = view;
  const whole = conversation;
  const before = data.answerOf(turn, column);
  // of two answers each can be made again when only one model is chosen
  const model = host.models()[column] ?? before?.model ?? host.models()[0];
  const system = settings.system();
  const sampling = settings.read();
  const made = { model, system, content: "", reasoning: "", stopped: false, failure: null };
  Object.assign(made, { finish: "", ...new Meter().values(), probabilities: [] });
  const body = { model, messages: data.messages(whole, turn, system), ...sampling };
  if (settings.isOn("thoughtless")) body.reasoning_effort = "none";
  if (settings.isOn("logprobs")) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  const { versions } = turn.columns[column];
  // nothing is lost with an answer that failed before its first word
  if (before?.failure && !before.content && versions.at(-1) === before) versions.pop();
  versions.push(made);
  turn.columns[column].shown = versions.length - 1;
  const stopper = begin(view, column, made);
  save(whole);
  await receive(view.answers[column], made, body, stopper.signal);
  made.stopped = stopper.signal.aborted;
  save(whole);
  running.delete(made);
  // another conversation may be on the page by now
  if (whole === conversation) end(view, column, made);
}

async function receive(view, made, body, signal) {
  const meter = new Meter();
  let counted = null;
  try {
    for await (const part of server.answer(host.key(), body, signal)) {
      meter.take(part);
      made.content += part.text;
      made.reasoning += part.thought;
      made.probabilities.push(...part.probabilities);
      made.finish ||= part.finish ?? "";
      counted ??= part.tokens;
      if (parted(made.content, false).answer) meter.endThought();
      Object.assign(made, meter.values(counted));
      if (part.text || part.thought) view.grow(() => live(made), following);
    }
  } catch (error) {
    if (!(error instanceof server.Failure)) throw error;
    const { word, detail, filling } = error;
    made.failure = { word, detail, filling };
  }
}

const live = ({ tokens, rate }) => ({
  tokens: tokens.toLocaleString(),
  rate: rate?.toFixed(1) ?? "–",
});

function begin(view, column, made) {
  const stopper = new AbortController();
  const pressed = document.activeElement;
  running.set(made, stopper);
  view.answers[column].begin(made);
  say(find("spoken"), "answering");
  find("send").hidden = true;
  find("stop").hidden = false;
  // a button that vanishes must not take the focus with it
  if (pressed === find("send") || view.element.contains(pressed)) find("stop").focus();
  show();
  toEnd();
  return stopper;
}

function end(view, column, made) {
  const follow = following();
  view.answers[column].show(made, !view.turn.next.length);
  if (!isRunning()) {
    idle();
    show();
    say(find("spoken"), null);
    if (!made.failure) find("spoken").textContent = spoken(view);
  }
  follow();
  if (made.failure?.word === "error_401") host.refused(made.failure);
  if (made.failure?.word === "error_404") host.moved();
}

function spoken({ answers }) {
  if (answers.length === 1) return answers[0].spoken();
  return answers.map((view, at) => `${text(at ? "answer_b" : "answer_a")}: ${view.spoken()}`).join("\n");
}

function idle() {
  const hadFocus = document.activeElement === find("stop");
  find("send").hidden = false;
  find("stop").hidden = true;
  if (hadFocus) find(touch ? "log" : "message").focus();
}

async function save(whole) {
  whole.updated = new Date().toISOString();
  const kept = await database.put(whole, settings.isOn("keep"));
  host.stored(kept);
}

async function followOtherTab(changed, removed) {
  if (removed.includes(conversation.id)) open();
  else if (changed.includes(conversation.id) && !isRunning()) {
    open((await database.get(conversation.id)) ?? conversation);
  }
}

/** What brings the end into view again after a change, if it was in view before. */
function following() {
  const log = find("log");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  return () => follows && toEnd();
}

function toEnd() {
  find("log").scrollTop = find("log").scrollHeight;
}
