// A conversation as data, without the page: what is stored, exported and sent.
//
// Conversation: {id, title, created, updated, next: [Turn], shown}. Turn: {question, columns:
// [Column], continues, preferred: [Preference], next: [Turn], shown}. `next` holds what was asked
// after it, edited questions side by side, and `shown` which of them is to be seen. Column:
// {versions: [Answer], shown}. Answer: {model, system, sampling, content, reasoning, ...}.
// Preference: {system, chosen: [column, version], rejected: [column, version]}.

import { parted } from "./thoughts.js";

/** An empty conversation. */
export function fresh() {
  const now = new Date().toISOString();
  // over plain HTTP there is no randomUUID
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", created: now, updated: now, next: [], shown: 0 };
}

/** The turns that are to be seen, first to last. */
export function path(conversation) {
  const turns = [];
  for (let at = conversation.next[conversation.shown]; at; at = at.next[at.shown]) turns.push(at);
  return turns;
}

/** What a turn comes after: a turn or the conversation. */
export function parentOf(conversation, turn) {
  const turns = path(conversation);
  return turns[turns.indexOf(turn) - 1] ?? conversation;
}

/** Add a question after `parent`, beside those that were asked there before, and show it. */
export function addTurn(parent, question, columns) {
  const made = {
    question,
    columns: Array.from({ length: columns }, () => ({ versions: [], shown: 0 })),
    continues: null,
    preferred: [],
    next: [],
    shown: 0,
  };
  // what was answered is settled: it is what the later turns were told
  if (parent.columns) parent.continues ??= continued(parent);
  parent.next.push(made);
  parent.shown = parent.next.length - 1;
  return made;
}

/** The answer of a column that is to be seen; undefined where there is none. */
export const answerOf = (turn, column) => {
  const { versions, shown } = turn.columns[column];
  return versions[shown];
};

/** What an answer says, without its thought. */
export const said = (answer) => (answer ? parted(answer.content, true).answer : "");

/** The thought of an answer, "" where there is none. */
export function thoughtOf(answer) {
  return [answer.reasoning, parted(answer.content, true).thought].filter(Boolean).join("\n\n");
}

/** The column that the conversation goes on with. */
export function continued(turn) {
  if (turn.continues !== null) return turn.continues;
  const choice = preference(turn);
  if (choice) return choice.chosen[0];
  const filled = turn.columns.findIndex((_, column) => said(answerOf(turn, column)));
  return Math.max(filled, 0);
}

/** Messages of a request for an answer to `turn`. */
export function messages(conversation, turn, system) {
  const turns = path(conversation);
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...exchanged(turns.slice(0, turns.indexOf(turn))),
    { role: "user", content: turn.question },
  ];
}

function exchanged(turns) {
  const pairs = turns.map((turn) => [turn.question, said(answerOf(turn, continued(turn)))]);
  // a question without an answer would break the alternation that templates ask for
  return pairs
    .filter(([, answer]) => answer)
    .flatMap(([question, answer]) => [
      { role: "user", content: question },
      { role: "assistant", content: answer },
    ]);
}

/** Whether one of the two answers of a turn that are to be seen can be called the better one. */
export function comparable(turn) {
  if (turn.columns.length !== 2) return false;
  const [left, right] = [answerOf(turn, 0), answerOf(turn, 1)];
  const whole = [left, right].every((answer) => answer && !answer.failure && said(answer));
  // to other instructions an answer is another one's
  return whole && left.system === right.system && left.content !== right.content;
}

const places = (turn) => turn.columns.map(({ shown }, column) => [column, shown]);
const same = (one, other) => one[0] === other[0] && one[1] === other[1];

/** What was chosen of the two answers that are to be seen; undefined where nothing was. */
export function preference(turn) {
  return turn.preferred.find(({ chosen, rejected }) =>
    places(turn).every((place) => same(place, chosen) || same(place, rejected)),
  );
}

/** Call the answer of a column the better one; the same choice again takes it back. */
export function prefer(turn, column) {
  const before = preference(turn);
  turn.preferred = turn.preferred.filter((each) => each !== before);
  if (before?.chosen[0] === column) return;
  const shown = places(turn);
  turn.preferred.push({ chosen: shown[column], rejected: shown[1 - column] });
}

/** The choices of a conversation as rows: {prompt, chosen, rejected, and the models' names}. */
export function preferenceRows(conversation) {
  return along(conversation, []).flatMap(([turn, before]) =>
    turn.preferred.map(({ chosen, rejected }) => {
      const [better, worse] = [chosen, rejected].map(([column, version]) => {
        return turn.columns[column].versions[version];
      });
      const { system } = better;
      return {
        prompt: [
          ...(system ? [{ role: "system", content: system }] : []),
          ...exchanged(before),
          { role: "user", content: turn.question },
        ],
        chosen: [message(better)],
        rejected: [message(worse)],
        chosen_model: better.model,
        rejected_model: worse.model,
      };
    }),
  );
}

function message(answer) {
  const thought = thoughtOf(answer);
  const made = { role: "assistant", content: said(answer) };
  return thought ? { ...made, reasoning_content: thought } : made;
}

/** Every turn, with those before it; not only the ones that are to be seen. */
function along(parent, before) {
  return parent.next.flatMap((turn) => [[turn, before], ...along(turn, [...before, turn])]);
}

/** The title of a conversation: how its first question begins. */
export function titleOf(question) {
  const line = question.trim().split("\n")[0];
  return Array.from(line).length > 40 ? `${Array.from(line).slice(0, 40).join("")}…` : line;
}
