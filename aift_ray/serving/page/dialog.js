// A question to the user in a window of its own: a confirmation or a name.

import { say } from "./words.js";

const find = (id) => document.getElementById(id);

/**
 * Ask; each text is the name of one in words.js.
 *
 * title: the question. more: what follows from it. field: the label of a text to be entered; none:
 * a confirmation. act: the button. danger: whether something is lost by it. The text, or true;
 * null where the user turned away.
 */
export function ask({ title, more = null, filling = {}, field = null, act, danger = false }) {
  const dialog = find("ask");
  say(find("ask-title"), title, filling);
  say(find("ask-more"), more, filling);
  say(find("ask-field").labels[0], field);
  say(find("ask-act"), act);
  find("ask-act").classList.toggle("danger", danger);
  find("ask-field").value = "";
  for (const part of [find("ask-field"), find("ask-field").labels[0]]) part.hidden = !field;
  dialog.returnValue = "";
  dialog.showModal();
  (field ? find("ask-field") : find("ask-cancel")).focus();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const agreed = dialog.returnValue === "yes";
      resolve(agreed ? !field || find("ask-field").value.trim() || null : null);
    };
  });
}

/** Wire the buttons of the window. */
export function build() {
  const dialog = find("ask");
  dialog.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("yes");
  });
  find("ask-cancel").addEventListener("click", () => dialog.close());
}
