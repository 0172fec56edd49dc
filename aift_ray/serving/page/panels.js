// The panels on the left and the right: beside the conversation, or over it where there is no room.

import { store, stored } from "./local.js";

const find = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 56rem)");
// three columns beside each other want a wide window
const BESIDE = { history: "(min-width: 80rem)", settings: "(min-width: 64rem)" };

/** Wire the buttons and show the panels as the user left them. */
export function build() {
  for (const name of Object.keys(BESIDE)) {
    find(`open-${name}`).addEventListener("click", () => toggle(name));
    find(`close-${name}`).addEventListener("click", () => shut(name));
  }
  arrange();
  narrow.addEventListener("change", arrange);
}

/** Show a panel. */
export function open(name) {
  if (isOpen(name)) return;
  if (narrow.matches) close();
  put(name, true);
}

/** Close a panel that is over the conversation; whether there was one. */
export function close() {
  if (!narrow.matches) return;
  for (const name of Object.keys(BESIDE)) if (isOpen(name)) shut(name);
}

const isOpen = (name) => !find(name).hidden;

function toggle(name) {
  if (isOpen(name)) return shut(name);
  open(name);
  if (!narrow.matches) store(`panel-${name}`, "open");
  else find(name).querySelector("button, select, textarea").focus();
}

function shut(name) {
  put(name, false);
  if (!narrow.matches) store(`panel-${name}`, "closed");
  find(`open-${name}`).focus();
}

function put(name, isShown) {
  find(name).hidden = !isShown;
  find(`open-${name}`).setAttribute("aria-expanded", String(isShown));
  document.body.classList.toggle(`with-${name}`, isShown);
  // what is under a panel can be neither seen nor reached
  const isCovered = narrow.matches && Object.keys(BESIDE).some(isOpen);
  for (const part of document.querySelector("main").children) part.inert = isCovered;
}

function arrange() {
  for (const [name, wide] of Object.entries(BESIDE)) {
    const choice = stored(`panel-${name}`);
    put(name, !narrow.matches && (choice ? choice === "open" : matchMedia(wide).matches));
  }
}
