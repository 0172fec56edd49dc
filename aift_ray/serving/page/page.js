// The page: what the buttons do, the key, the choice of models.

import * as chat from "./chat.js";
import * as database from "./database.js";
import * as dialog from "./dialog.js";
import * as history from "./history.js";
import { sendsOn, touch } from "./keys.js";
import { store, stored } from "./local.js";
import * as models from "./models.js";
import * as panels from "./panels.js";
import * as settings from "./settings.js";
import { say, speak } from "./words.js";

const find = (id) => document.getElementById(id);
const asksKey = document.body.dataset.asksKey === "yes";
const key = () => sessionStorage.getItem("key");

async function start() {
  dialog.build();
  settings.build(turned);
  models.build({ key, refused: askKey, notice });
  const { chosen, load } = models;
  chat.build({ key, models: chosen, refused: askKey, moved: load, stored: kept });
  history.build({ current: chat.current, open: openConversation });
  speak(stored("language") ?? (navigator.language.startsWith("ja") ? "ja" : "en"));
  panels.build();
  wireHeader();
  wireComposer();
  wireKey();
  showLanguage();
  showTheme(stored("theme"));
  turned();
  connect().then((known) => known && !touch && focusFirst());
  const asked = await database.get(location.hash.slice(1));
  if (asked) openConversation(asked);
}

/** Get the models, after the key where there is none yet; whether they are known by now. */
async function connect() {
  if (!asksKey || key()) return models.load();
  askKey();
  return false;
}

// unless the user was faster
function focusFirst() {
  if (document.activeElement === document.body) find("message").focus();
}

/** A switch of the settings was turned. */
function turned() {
  say(find("welcome-more"), settings.isOn("keep") ? "welcome_kept" : "welcome_more");
  chat.repaint();
}

function kept(isKept) {
  if (!isKept) notice("not_kept", null, "close", () => notice(null));
  showPlace();
  history.refresh();
}

function openConversation(conversation) {
  chat.open(conversation);
  panels.close();
  showPlace();
  history.refresh();
}

// a reload shows the same conversation
function showPlace() {
  window.history.replaceState(null, "", `#${chat.current()}`);
}

/** Say something above the conversation that stays until it is dealt with; no word: nothing. */
function notice(word, failure, action, act) {
  const [sentence, button] = find("notice").children;
  find("notice").hidden = !word;
  if (!word) return;
  say(sentence.children[0], word, failure?.filling);
  sentence.children[1].textContent = failure?.detail ?? "";
  say(button, action);
  button.onclick = act;
}

function wireHeader() {
  find("language").addEventListener("click", () => {
    speak(document.documentElement.lang === "ja" ? "en" : "ja");
    store("language", document.documentElement.lang);
    showLanguage();
    history.refresh();
  });
  find("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    store("theme", theme);
    showTheme(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showTheme());
  find("new").addEventListener("click", () => {
    openConversation();
    find("message").focus();
  });
  find("change-key").addEventListener("click", () => askKey());
  find("change-key").hidden = !asksKey;
}

function showLanguage() {
  const other = document.documentElement.lang === "ja" ? "en" : "ja";
  find("language").textContent = other === "ja" ? "日本語" : "English";
  find("language").lang = other;
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function showTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  find("theme").setAttribute("aria-pressed", String(isDark()));
}

function wireComposer() {
  if (!touch) say(find("keys"), "keys");
  sendsOn(find("message"), send);
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  find("stop").addEventListener("click", chat.stop);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
    if (chat.isRunning()) chat.stop();
    else panels.close();
  });
}

function send() {
  const message = find("message");
  if (!message.value.trim() || chat.isRunning()) return;
  if (!models.known()) {
    if (!find("key-dialog").open) connect();
    return;
  }
  if (!settings.read()) {
    panels.open("settings");
    settings.focusWrong();
    return;
  }
  if (chat.ask(message.value)) message.value = "";
}

function askKey(failure) {
  const dialog = find("key-dialog");
  if (failure) sessionStorage.removeItem("key");
  say(find("key-problem"), failure?.word);
  find("key").setAttribute("aria-invalid", String(Boolean(failure)));
  find("key").value = "";
  if (!dialog.open) dialog.showModal();
}

function wireKey() {
  const dialog = find("key-dialog");
  dialog.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = find("key").value.trim();
    if (!given) {
      say(find("key-problem"), "key_missing");
      find("key").focus();
      return;
    }
    sessionStorage.setItem("key", given);
    dialog.close("given");
    if ((await models.load()) && !touch) find("message").focus();
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "given" && !models.known()) {
      notice("key_needed", null, "enter_key", () => askKey());
    }
    dialog.returnValue = "";
  });
}

start();
