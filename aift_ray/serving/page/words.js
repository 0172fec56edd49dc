// Every text of the page in both languages, and the switch between them.
//
// An element with data-word shows that text; data-label and data-placeholder name the texts of the
// attributes. {name} in a text is filled in by say().

import en from "./en.js";
import ja from "./ja.js";

const WORDS = { ja, en };
const fillings = new WeakMap();
let language = "en";

/** Whether there is a text of that name. */
export const known = (word) => word in WORDS.en;

/** The text of that name in the present language. */
export function text(word, filling = {}) {
  return WORDS[language][word].replace(/\{(\w+)\}/g, (_, name) => filling[name]);
}

/** Show a text in an element; it follows later changes of the language. No word: nothing. */
export function say(element, word, filling = {}) {
  if (!word) {
    delete element.dataset.word;
    element.textContent = "";
    return;
  }
  element.dataset.word = word;
  fillings.set(element, filling);
  element.textContent = text(word, filling);
}

/** Put every text under `root` into the present language. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-word]")) {
    element.textContent = text(element.dataset.word, fillings.get(element));
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
    if (element.localName === "button") element.title = text(element.dataset.label);
    if (element.localName === "optgroup") element.label = text(element.dataset.label);
  }
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = text(element.dataset.placeholder);
  }
}

/** Change the language of the whole page: "ja" or "en". */
export function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  translate(document);
}
