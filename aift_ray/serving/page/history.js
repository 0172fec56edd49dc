// The list of conversations, and what can be done with all of them.

import { preferenceRows } from "./conversation.js";
import * as database from "./database.js";
import { ask } from "./dialog.js";
import * as settings from "./settings.js";
import * as transfer from "./transfer.js";
import { say, text } from "./words.js";

const find = (id) => document.getElementById(id);
let host;

/**
 * Wire the list.
 *
 * current: returns the id of the conversation on the page; open: shows one, or without an argument a
 * new one.
 */
export function build(page) {
  host = page;
  database.onChange(refresh);
  find("export").addEventListener("click", transfer.exportAll);
  find("import").addEventListener("click", () => find("import-file").click());
  find("import-file").addEventListener("change", take);
  find("delete-all").addEventListener("click", removeAll);
  find("download-preferences").addEventListener("click", transfer.downloadPreferences);
  refresh();
}

/** Show what is stored by now. */
export async function refresh() {
  const conversations = await database.all();
  const list = find("conversations");
  const focused = list.contains(document.activeElement) && document.activeElement.dataset.id;
  list.replaceChildren(...conversations.map(item));
  if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  const rows = conversations.flatMap(preferenceRows).length;
  say(find("rated"), rows ? "rated" : "rated_none", { rows });
  find("no-conversations").hidden = conversations.length > 0;
  find("download-preferences").disabled = !rows;
  for (const id of ["export", "delete-all"]) find(id).disabled = !conversations.length;
}

function item(conversation) {
  const made = find("conversation").content.cloneNode(true).firstElementChild;
  const [open, erase] = made.querySelectorAll("button");
  const title = conversation.title || text("untitled");
  open.querySelector("span").textContent = title;
  const time = open.querySelector("time");
  time.dateTime = conversation.updated;
  time.textContent = shortDate(conversation.updated);
  open.dataset.id = conversation.id;
  if (conversation.id === host.current()) open.setAttribute("aria-current", "true");
  open.addEventListener("click", async () => host.open(await database.get(conversation.id)));
  erase.setAttribute("aria-label", text("delete_named", { title }));
  erase.title = text("delete");
  erase.addEventListener("click", () => remove([conversation], "delete_ask", title));
  return made;
}

function shortDate(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  const today = date.toDateString() === new Date().toDateString();
  const format = today
    ? { hour: "numeric", minute: "2-digit" }
    : { year: "numeric", month: "numeric", day: "numeric" };
  return date.toLocaleString(document.documentElement.lang, format);
}

async function removeAll() {
  await remove(await database.all(), "delete_all_ask", "");
}

async function remove(conversations, title, name) {
  const rows = conversations.flatMap(preferenceRows).length;
  const filling = { name, rows, number: conversations.length };
  const more = rows ? "delete_rows" : "delete_more";
  if (!(await ask({ title, more, filling, act: "delete", danger: true }))) return;
  const ids = conversations.map(({ id }) => id);
  await database.remove(ids);
  if (ids.includes(host.current())) host.open();
  await refresh();
  find("new").focus();
  say(find("spoken"), "deleted");
}

async function take({ target }) {
  const [file] = target.files;
  target.value = "";
  const conversations = transfer.read(await file.text());
  if (conversations) await database.restore(conversations, settings.isOn("keep"));
  if (conversations?.some(({ id }) => id === host.current())) host.open();
  await refresh();
  const word = conversations ? "imported" : "import_wrong";
  say(find("imported"), word, { number: conversations?.length });
}
