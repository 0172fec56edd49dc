// Conversations in the browser's own database; in memory where the browser has none.

const NAME = "aift-ray";
const STORE = "conversations";
// other tabs of this page; what changes here is told there
const channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
const removed = new Set();
const memory = new Map();
let opened = null;

channel?.addEventListener("message", ({ data }) => data.removed.forEach((id) => removed.add(id)));

/** Call back with what another tab did: the ids that it changed, those that it removed. */
export function onChange(act) {
  channel?.addEventListener("message", ({ data }) => act(data.changed, data.removed));
}

/** Every conversation, the one that changed last first. */
export async function all() {
  const stored = (await done("readonly", (store) => store.getAll()).catch(() => null)) ?? [];
  const found = [...stored.filter(({ id }) => !memory.has(id)), ...memory.values()];
  return found.sort((one, other) => (one.updated < other.updated ? 1 : -1));
}

/** One conversation; undefined where there is none. */
export async function get(id) {
  return memory.get(id) ?? done("readonly", (store) => store.get(id)).catch(() => undefined);
}

/**
 * Store a conversation, unless it was removed; without `keep` in memory, as where storage fails.
 *
 * Whether it is where it was to be.
 */
export async function put(conversation, keep) {
  const { id } = conversation;
  if (removed.has(id)) return true;
  memory.set(id, conversation);
  if (!keep) return true;
  try {
    await done("readwrite", (store) => store.put(conversation));
  } catch {
    return false;
  }
  memory.delete(id);
  channel?.postMessage({ changed: [id], removed: [] });
  return true;
}

/** Store conversations that may have been removed before. */
export async function restore(conversations, keep) {
  for (const conversation of conversations) {
    removed.delete(conversation.id);
    await put(conversation, keep);
  }
}

/** Remove conversations. */
export async function remove(ids) {
  for (const id of ids) {
    removed.add(id);
    memory.delete(id);
    await done("readwrite", (store) => store.delete(id)).catch(() => {});
  }
  channel?.postMessage({ changed: [], removed: ids });
}

function open() {
  opened ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      // storage may be forbidden
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opened;
}

async function done(mode, act) {
  const database = await open();
  if (!database) throw new Error("the browser has no database for this page");
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = act(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}
