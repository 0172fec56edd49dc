// The choice of a model, and of a second one to compare it with.

import * as server from "./server.js";
import { translate } from "./words.js";

const find = (id) => document.getElementById(id);
let host;

/**
 * Wire the choice.
 *
 * key: returns the API key; refused: called when it is refused; notice: says what went wrong.
 */
export function build(page) {
  host = page;
  find("compare").addEventListener("click", () => compare(find("other-choice").hidden));
}

/** The models that are chosen: one, or two to compare. */
export function chosen() {
  const both = [find("model").value, find("other").value];
  return find("other-choice").hidden ? both.slice(0, 1) : both;
}

/** Whether the server has told its models. */
export const known = () => !find("model").disabled;

/** Ask the server which there are; whether it told. */
export async function load() {
  host.notice(null);
  try {
    const names = await server.models(host.key());
    list(find("model"), names, names[0]);
    list(find("other"), names, names[1] ?? names[0]);
    find("compare").disabled = false;
    return true;
  } catch (failure) {
    if (!(failure instanceof server.Failure)) throw failure;
    if (failure.word === "error_401") host.refused(failure);
    else host.notice(failure.word, failure, "retry", load);
    return false;
  }
}

function list(select, names, first) {
  const [base, ...adapters] = names;
  const before = select.value;
  const groups = [group("base", [base])];
  if (adapters.length) groups.push(group("adapters", adapters));
  select.replaceChildren(...groups);
  select.value = names.includes(before) ? before : first;
  select.disabled = false;
  translate(select);
}

function group(label, names) {
  const element = document.createElement("optgroup");
  element.dataset.label = label;
  element.append(...names.map((name) => new Option(name)));
  return element;
}

function compare(on) {
  find("other-choice").hidden = !on;
  find("compare").setAttribute("aria-pressed", String(on));
  document.body.classList.toggle("comparing", on);
  if (on) find("other").focus();
}
