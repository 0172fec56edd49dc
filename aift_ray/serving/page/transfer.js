// Conversations as a file, and choices as rows of a data set.

import * as database from "./database.js";
import { preferenceRows } from "./conversation.js";
import { download } from "./clipboard.js";

const FORMAT = "aift-ray-conversations";

/** Download every conversation; import() reads the file. */
export async function exportAll() {
  const file = { format: FORMAT, version: 1, conversations: await database.all() };
  const text = `${JSON.stringify(file, null, 1)}\n`;
  download(`conversations-${stamp()}.json`, text, "application/json");
}

/** The conversations in the text of such a file; null where it is none. */
export function read(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    return null;
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) return null;
  try {
    return file.conversations.map(conversation);
  } catch {
    return null;
  }
}

/** Download the choices as JSON Lines. */
export async function downloadPreferences() {
  const rows = (await database.all()).flatMap(preferenceRows);
  const text = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
  download(`preferences-${stamp()}.jsonl`, text, "application/jsonl");
}

const stamp = () => new Date().toISOString().slice(0, 19).replace(/[^\d]/g, "");

// what the page works with later is checked here, part by part; anything else is left out
const TEXTS = ["model", "system", "content", "reasoning", "finish"];
const NUMBERS = ["thinking", "tokens", "rate", "wait"];

function conversation(given) {
  const { id, title, created, updated } = given;
  [id, title, created, updated].forEach(isText);
  return { id, title, created, updated, ...branches(given) };
}

function branches({ next, shown }) {
  if (!Array.isArray(next)) throw new TypeError("next");
  return { next: next.map(turn), shown: index(shown, next) };
}

function turn(given) {
  const { question, columns, continues, preferred } = given;
  isText(question);
  if (columns.length !== 1 && columns.length !== 2) throw new TypeError("columns");
  const made = columns.map(({ versions, shown }) => {
    return { versions: versions.map(answer), shown: index(shown, versions) };
  });
  const choices = preferred.map(({ chosen, rejected }) => {
    const places = [chosen, rejected].map(([column, version]) => {
      if (!made[column].versions[version]) throw new TypeError("preferred");
      return [column, version];
    });
    return { chosen: places[0], rejected: places[1] };
  });
  const on = continues === null ? null : index(continues, made);
  return { question, columns: made, continues: on, preferred: choices, ...branches(given) };
}

function answer(given) {
  const made = { stopped: Boolean(given.stopped) };
  for (const name of TEXTS) isText((made[name] = given[name] ?? ""));
  for (const name of NUMBERS) made[name] = Number.isFinite(given[name]) ? given[name] : null;
  made.probabilities = (given.probabilities ?? []).map(({ token, p, others }) => {
    return { ...probable([token, p]), others: others.map((each) => Object.values(probable(each))) };
  });
  return made;
}

function probable([token, p]) {
  isText(token);
  if (!Number.isFinite(p)) throw new TypeError("a number is needed");
  return { token, p };
}

function isText(value) {
  if (typeof value !== "string") throw new TypeError("a text is needed");
}

function index(value, list) {
  if (!Number.isInteger(value) || value < 0 || value >= Math.max(list.length, 1)) {
    throw new TypeError("an index is needed");
  }
  return value;
}
