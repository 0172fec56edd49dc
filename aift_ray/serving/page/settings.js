// The form of system prompt and sampling settings.

import { say } from "./words.js";

// the ranges are the server's; the values at the start are those of generate_japanese
const COMMON = [
  { name: "temperature", least: 0, most: 2, step: 0.1, value: 0.7 },
  { name: "top_p", least: 0.01, most: 1, step: 0.05, value: 0.9 },
  { name: "top_k", least: 0, most: 2 ** 31, value: 50 },
  { name: "max_tokens", least: 1, most: 2 ** 31, value: 512 },
  { name: "seed", least: 0, most: Number.MAX_SAFE_INTEGER },
];
const RARE = [
  { name: "min_p", least: 0, most: 1, step: 0.01 },
  { name: "repetition_penalty", least: 0.01, most: 10, step: 0.05 },
  { name: "presence_penalty", least: -2, most: 2, step: 0.1 },
  { name: "frequency_penalty", least: -2, most: 2, step: 0.1 },
];
const find = (id) => document.getElementById(id);

/** Build the fields. */
export function build() {
  for (const field of COMMON) find("common").append(made(field));
  for (const field of RARE) find("rare").append(made(field));
  // the values get theirs back after the event
  const fields = [...COMMON, ...RARE];
  find("common").form.addEventListener("reset", () => setTimeout(() => fields.forEach(holds)));
}

/** The fields of a request, empty ones left out; null where one is wrong, which is then shown. */
export function read() {
  const fields = [...COMMON, ...RARE];
  if (fields.filter((field) => !holds(field)).length) return null;
  const filled = fields.filter(({ name }) => find(name).value !== "");
  return Object.fromEntries(filled.map(({ name }) => [name, find(name).valueAsNumber]));
}

/** The system prompt; "" where there is none. */
export const system = () => find("system").value.trim();

/** Put the focus on the first wrong field. */
export function focusWrong() {
  const input = document.querySelector("#settings [aria-invalid=true]");
  const folded = input.closest("details");
  if (folded) folded.open = true;
  input.focus();
}

function made(field) {
  const part = find("field").content.cloneNode(true);
  const [label, input, hint, problem] = part.querySelector("p").children;
  const { name, least, most, step = 1, value = "" } = field;
  label.htmlFor = input.id = name;
  Object.assign(input, { min: least, max: most, step, defaultValue: value });
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
