// Copying, over plain HTTP too, and files to download.

import { say } from "./words.js";

const find = (id) => document.getElementById(id);

/** A button that copies what `content` returns. */
export function copyButton(content) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "copy" });
  say(button, "copy");
  button.addEventListener("click", () => copy(content(), button));
  return button;
}

/** Copy a text; the button then says whether that went well. */
export async function copy(content, button) {
  const word = (await copied(content)) ? "copied" : "not_copied";
  say(button, word);
  say(find("spoken"), word);
  setTimeout(() => say(button, "copy"), 3000);
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

/** Have the browser save a text as a file. */
export function download(name, text, kind) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  // the browser reads it after this event
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
