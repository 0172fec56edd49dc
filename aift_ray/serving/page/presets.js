// Named values of the sampling settings: those of the page and the user's own.

import { ask } from "./dialog.js";
import { recall, store } from "./local.js";
import { say, text } from "./words.js";

// the first are those of generate_japanese, the last what makers of thinking models recommend
const GIVEN = {
  preset_standard: { temperature: 0.7, top_p: 0.9, top_k: 50, max_tokens: 512 },
  preset_exact: { temperature: 0, max_tokens: 512 },
  preset_varied: { temperature: 1, top_p: 0.95, max_tokens: 512 },
  preset_thinking: { temperature: 0.6, top_p: 0.95, top_k: 20 },
};
const find = (id) => document.getElementById(id);
let own = {};

/** Build the choice. values: returns those of the form; fill: puts values into it. */
export function build(values, fill) {
  // no name of a user's is one that objects have already
  own = Object.assign(Object.create(null), recall("presets"));
  list();
  find("preset").addEventListener("change", () => fill(given(find("preset").value)));
  find("save-preset").addEventListener("click", () => save(values));
  find("delete-preset").addEventListener("click", () => {
    delete own[find("preset").value.slice(1)];
    store("presets", JSON.stringify(own));
    list();
    compare(values());
    find("preset").focus();
  });
}

/** The values that the form begins with. */
export const first = () => GIVEN.preset_standard;

/** Show which preset has these values. */
export function compare(values) {
  const names = [...find("preset").options].map(({ value }) => value);
  const found = names.find((name) => name && isSame(values, given(name)));
  find("preset").value = found ?? "";
  find("delete-preset").hidden = !found?.startsWith("=");
}

// the user's own may have any name, so they are told apart by what is before it
const given = (name) => (name.startsWith("=") ? own[name.slice(1)] : GIVEN[name]) ?? {};

function isSame(values, preset) {
  return Object.entries(values)
    .filter(([name]) => name !== "seed")
    .every(([name, value]) => value === String(preset[name] ?? ""));
}

function list() {
  const free = new Option("", "");
  free.hidden = true;
  say(free, "preset_own");
  const named = Object.keys(GIVEN).map((name) => {
    const option = new Option("", name);
    say(option, name);
    return option;
  });
  const mine = Object.keys(own).map((name) => new Option(name, `=${name}`));
  find("preset").replaceChildren(free, ...named, ...mine);
}

async function save(values) {
  const name = await ask({ title: "preset_save", field: "preset_name", act: "save" });
  if (!name) return;
  const { seed: _, ...kept } = values();
  own[name] = kept;
  store("presets", JSON.stringify(own));
  list();
  compare(values());
  say(find("spoken"), null);
  find("spoken").textContent = text("preset_saved", { name });
}
