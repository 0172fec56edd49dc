// Small values that stay in the browser. Storage may be forbidden: then they last as long as the page.

const memory = new Map();

/** A value that was stored as JSON; null where there is none. */
export function recall(name) {
  try {
    return JSON.parse(stored(name));
  } catch {
    return null;
  }
}

/** A text that was stored; null where there is none. */
export function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return memory.get(name) ?? null;
  }
}

/** Store a text. */
export function store(name, value) {
  memory.set(name, value);
  try {
    localStorage.setItem(name, value);
  } catch {
    // see above
  }
}
