// The page: what the buttons do, the key, the choice of a model.

import * as chat from "./chat.js";
import * as server from "./server.js";
import * as settings from "./settings.js";
import { say, speak, translate } from "./words.js";

const find = (id) => document.getElementById(id);
const asksKey = document.body.dataset.asksKey === "yes";
// with a touch keyboard Enter is the only way to a new line
const touch = matchMedia("(hover: none) and (pointer: coarse)").matches;

function start() {
  settings.build();
  const key = () => sessionStorage.getItem("key");
  chat.build({ key, refused: askKey, moved: loadModels, touch });
  speak(stored("language") ?? (navigator.language.startsWith("ja") ? "ja" : "en"));
  wireHeader();
  wireSettings();
  wireComposer();
  wireKey();
  showLanguage();
  showTheme(stored("theme"));
  connect();
}

function connect() {
  if (asksKey && !sessionStorage.getItem("key")) askKey();
  else loadModels();
}

// storage may be forbidden; then choices last as long as the page
function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function store(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // see above
  }
}

async function loadModels() {
  const select = find("model");
  notice(null);
  try {
    const [base, ...adapters] = await server.models(sessionStorage.getItem("key"));
    const chosen = select.value;
    const groups = [group("base", [base])];
    if (adapters.length) groups.push(group("adapters", adapters));
    select.replaceChildren(...groups);
    if ([base, ...adapters].includes(chosen)) select.value = chosen;
    select.disabled = false;
    translate(select);
    return true;
  } catch (failure) {
    if (!(failure instanceof server.Failure)) throw failure;
    if (failure.word === "error_401") askKey(failure);
    else notice(failure.word, failure, "retry", loadModels);
    return false;
  }
}

function group(label, names) {
  const element = document.createElement("optgroup");
  element.dataset.label = label;
  element.append(...names.map((name) => new Option(name)));
  return element;
}

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
  });
  find("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    store("theme", theme);
    showTheme(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showTheme());
  find("new").addEventListener("click", () => {
    chat.clear();
    find("message").focus();
  });
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

// on a narrow screen the settings lie over the conversation
function openSettings(open) {
  document.body.classList.toggle("settings-open", open);
  find("open-settings").setAttribute("aria-expanded", String(open));
  document.querySelector("main").inert = open;
  if (open) find("system").focus();
  else find("open-settings").focus();
}

function wireSettings() {
  const isOpen = () => document.body.classList.contains("settings-open");
  find("open-settings").addEventListener("click", () => openSettings(!isOpen()));
  find("close-settings").addEventListener("click", () => openSettings(false));
  find("change-key").addEventListener("click", () => askKey());
  find("change-key").hidden = !asksKey;
  find("settings").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing || find("key-dialog").open) return;
    if (chat.running()) chat.stop();
    else if (isOpen()) openSettings(false);
  });
  matchMedia("(max-width: 56rem)").addEventListener("change", (narrow) => {
    if (!narrow.matches && isOpen()) openSettings(false);
  });
}

function wireComposer() {
  const message = find("message");
  if (!touch) say(find("keys"), "keys");
  message.enterKeyHint = touch ? "enter" : "send";
  message.addEventListener("keydown", (event) => {
    // 229: Safari tells the end of a composition before the Enter that ended it
    const composing = event.isComposing || event.keyCode === 229;
    const wanted = touch ? event.ctrlKey || event.metaKey : !event.shiftKey;
    if (event.key !== "Enter" || composing || !wanted) return;
    event.preventDefault();
    send();
  });
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  find("stop").addEventListener("click", chat.stop);
}

function send() {
  const message = find("message");
  if (!message.value.trim() || chat.running()) return;
  if (find("model").disabled) {
    if (!find("key-dialog").open) connect();
    return;
  }
  const sampling = settings.read();
  if (!sampling) {
    if (getComputedStyle(find("settings")).display === "none") openSettings(true);
    settings.focusWrong();
    return;
  }
  chat.ask(message.value);
  message.value = "";
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
    const key = find("key").value.trim();
    if (!key) {
      say(find("key-problem"), "key_missing");
      find("key").focus();
      return;
    }
    sessionStorage.setItem("key", key);
    dialog.close("given");
    if ((await loadModels()) && !touch) find("message").focus();
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "given" && find("model").disabled) {
      notice("key_needed", null, "enter_key", () => askKey());
    }
    dialog.returnValue = "";
  });
}

start();
