// The tokens of an answer, coloured by how probable each was, with what else could have come.

import { say, translate } from "./words.js";

/** Fill `element` with the tokens; arrow keys go from one to the next. */
export function show(element, probabilities) {
  const part = document.getElementById("probabilities").content.cloneNode(true);
  const [tokens, panel] = [part.querySelector(".tokens"), part.querySelector(".candidates")];
  tokens.append(...probabilities.flatMap((each) => button(each)));
  const first = tokens.querySelector("button");
  if (first) first.tabIndex = 0;
  const open = (pressed) => {
    const at = [...tokens.querySelectorAll("button")].indexOf(pressed);
    tokens.querySelector("[aria-pressed=true]")?.setAttribute("aria-pressed", "false");
    pressed.setAttribute("aria-pressed", "true");
    candidates(panel, probabilities[at]);
  };
  tokens.addEventListener("click", ({ target }) => {
    if (target.localName === "button") open(target);
  });
  tokens.addEventListener("keydown", (event) => move(event, tokens, open));
  translate(part);
  element.replaceChildren(part);
}

function button({ token, p }) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", tabIndex: -1, className: "token", title: percent(p) });
  made.dataset.level = p >= 0.9 ? 4 : p >= 0.6 ? 3 : p >= 0.3 ? 2 : p >= 0.1 ? 1 : 0;
  made.setAttribute("aria-pressed", "false");
  made.textContent = visible(token);
  const breaks = token.endsWith("\n") ? [document.createElement("br")] : [];
  return [made, ...breaks];
}

// a token may be nothing but blanks or a line end
const visible = (token) => (token.trim() ? token.replace(/\n/g, "⏎") : blank(token));
const blank = (token) => token.replace(/\n/g, "⏎").replace(/ /g, "␣").replace(/\t/g, "⇥");

const percent = (p) => `${(p * 100).toFixed(p < 0.01 ? 2 : 1)}%`;

function candidates(panel, { token, p, others }) {
  const listed = others.some(([other]) => other === token) ? others : [...others, [token, p]];
  const rows = listed.map(([other, its]) => {
    const row = document.createElement("tr");
    row.classList.toggle("taken", other === token);
    const bar = document.createElement("meter");
    Object.assign(bar, { value: its, min: 0, max: 1 });
    bar.setAttribute("aria-hidden", "true");
    for (const content of [visible(other), percent(its), bar]) {
      const cell = document.createElement("td");
      cell.append(content);
      row.append(cell);
    }
    return row;
  });
  panel.querySelector("tbody").replaceChildren(...rows);
  panel.hidden = false;
  say(panel.querySelector(".hint"), "taken_hint");
}

function move(event, tokens, open) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const all = [...tokens.querySelectorAll("button")];
  const at = all.indexOf(document.activeElement);
  const to = { Home: 0, End: all.length - 1 }[event.key] ?? at + (steps[event.key] ?? NaN);
  if (!all[to]) return;
  event.preventDefault();
  all[at].tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
  open(all[to]);
}
