// The form of system prompt, sampling and what is shown; its values stay in the browser.

import * as presets from "./presets.js";
import { say } from "./words.js";
import { recall, store } from "./local.js";

// the ranges are the server's
const COMMON = [
  { name: "temperature", least: 0, most: 2, step: 0.1 },
  { name: "top_p", least: 0.01, most: 1, step: 0.05 },
  { name: "top_k", least: 0, most: 2 ** 31 },
  { name: "max_tokens", least: 1, most: 2 ** 31 },
  { name: "seed", least: 0, most: Number.MAX_SAFE_INTEGER },
];
const RARE = [
  { name: "min_p", least: 0, most: 1, step: 0.01 },
  { name: "repetition_penalty", least: 0.01, most: 10, step: 0.05 },
  { name: "presence_penalty", least: -2, most: 2, step: 0.1 },
  { name: "frequency_penalty", least: -2, most: 2, step: 0.1 },
];
const FIELDS = [...COMMON, ...RARE];
const SWITCHES = ["thoughtless", "markdown", "logprobs", "keep"];
const find = (id) => document.getElementById(id);

/** Build the fields. changed: called when a switch is turned. */
export function build(changed) {
  for (const field of COMMON) find("common").append(made(field));
  for (const field of RARE) find("rare").append(made(field));
  presets.build(values, fill);
  restore(recall("settings") ?? {});
  const form = find("common").form;
  form.addEventListener("input", ({ target }) => {
    // what a preset changes is not there yet
    if (target.id !== "preset") keep();
  });
  form.addEventListener("change", ({ target }) => {
    if (SWITCHES.includes(target.id)) changed();
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    find("system").value = "";
    fill({ ...presets.first(), seed: "" });
  });
}

/** The fields of a request, empty ones left out; null where one is wrong, which is then shown. */
export function read() {
  if (FIELDS.filter((field) => !holds(field)).length) return null;
  const filled = FIELDS.filter(({ name }) => find(name).value !== "");
  return Object.fromEntries(filled.map(({ name }) => [name, find(name).valueAsNumber]));
}

/** The system prompt; "" where there is none. */
export const system = () => find("system").value.trim();

/** Whether "thoughtless", "markdown", "logprobs" or "keep" is on. */
export const isOn = (name) => find(name).checked;

/** Put the focus on the first wrong field. */
export function focusWrong() {
  const input = document.querySelector("#settings [aria-invalid=true]");
  const folded = input.closest("details");
  if (folded) folded.open = true;
  input.focus();
}

const values = () => Object.fromEntries(FIELDS.map(({ name }) => [name, find(name).value]));

/** Put values into the fields, and keep them; a preset leaves the seed alone. */
function fill(given) {
  for (const { name } of FIELDS) {
    if (name in given || name !== "seed") find(name).value = given[name] ?? "";
  }
  FIELDS.forEach(holds);
  keep();
}

function keep() {
  const switches = Object.fromEntries(SWITCHES.map((name) => [name, isOn(name)]));
  store("settings", JSON.stringify({ system: find("system").value, values: values(), switches }));
  presets.compare(values());
}

function restore({ system = "", switches = {}, values = presets.first() }) {
  find("system").value = system;
  for (const name of SWITCHES) find(name).checked = switches[name] ?? isOn(name);
  fill(values);
  const folded = find("rare").closest("details");
  folded.open = RARE.some(({ name }) => find(name).value);
}

function made(field) {
  const part = find("field").content.cloneNode(true);
  const [label, input, hint, problem] = part.querySelector("p").children;
  const { name, least, most, step = 1 } = field;
  label.htmlFor = input.id = name;
  Object.assign(input, { min: least, max: most, step });
  if (step === 1) input.inputMode = "numeric";
  hint.id = `${name}-hint`;
  problem.id = `${name}-problem`;
  input.setAttribute("aria-describedby", `${hint.id} ${problem.id}`);
  say(label, name);
  say(hint, `${name}_hint`);
  input.addEventListener("change", () => holds(field));
  return part;
}

function holds({ name, least, most, step = 1 }) {
  const input = find(name);
  const value = input.valueAsNumber;
  const outside = input.validity.badInput || value < least || value > most;
  const broken = step === 1 && !Number.isNaN(value) && !Number.isInteger(value);
  const problem = find(`${name}-problem`);
  if (outside) say(problem, "out_of_range", { least, most });
  else say(problem, broken ? "not_whole" : null);
  input.setAttribute("aria-invalid", String(outside || broken));
  return !outside && !broken;
}
