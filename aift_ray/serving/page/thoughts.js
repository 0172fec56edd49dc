// What a model thinks before it answers, where its text holds both.

const OPEN = "<think>";
// a template may have opened the thought; then only its end is in the text, on a line of its own
const CLOSE_ALONE = /^[ \t]*<\/think>[ \t]*$/m;

/**
 * A text in two parts.
 *
 * thought: between `<think>` at the beginning and `</think>`; answer: the rest; open: whether the
 * thought has no end yet. With `ended` nothing more comes: the beginning of a tag is then text.
 */
export function parted(text, ended) {
  const start = text.trimStart();
  if (start.startsWith(OPEN)) return afterOpening(start.slice(OPEN.length));
  // the first pieces of a stream may be a part of the tag
  if (!ended && start && OPEN.startsWith(start)) return { thought: "", answer: "", open: true };
  const close = CLOSE_ALONE.exec(text);
  if (!close) return { thought: "", answer: text, open: false };
  return {
    thought: text.slice(0, close.index).trim(),
    answer: text.slice(close.index + close[0].length).trimStart(),
    open: false,
  };
}

function afterOpening(text) {
  const end = text.indexOf("</think>");
  if (end < 0) return { thought: text.trimStart(), answer: "", open: true };
  const answer = text.slice(end + "</think>".length).trimStart();
  return { thought: text.slice(0, end).trim(), answer, open: false };
}
