const percent = Math.round(100 * data.confidence);
const words = {
  ja: { title: "評価レポート", other: "English", lead: `棒は得点、細い線は${percent}%信頼区間（行の再標本化による）です。「明確な差」は対応のある検定（Holm補正後）で判定しています。`,
    better: "明確に良い", worse: "明確に悪い", same: "明確な差はありません", against: (a, b) => `${a} と ${b} の比較`, rows: n => `${n} 行`,
    all: "すべての行", differ: "モデルで結果が異なる行", gained: "最初のモデルより良いモデルがある行", lost: "最初のモデルより悪いモデルがある行", wrong: "すべてのモデルが誤った行", find: "本文を検索",
    shown: (a, b) => `${b} 行中 ${a} 行を表示`, prompt: "プロンプト", text: "本文の先頭", expected: "正解", source: "出典", lower: "（小さいほど良い）", notes: "注意", p: "p値", judge: "判定者の評",
    overlap: o => `学習データとの重複：比較した ${o.compared} 行のうち ${o.seen} 行（連続する ${o.characters} 文字の一致で行の半分以上が覆われるもの）` + (o.too_short ? `。ほかの ${o.too_short} 行は、その行だけの文が ${o.characters} 文字に満たないため比較していません` : ""), unseen: n => `比較して学習データになかった ${n} 行` },
  en: { title: "Evaluation report", other: "日本語", lead: `Bars are scores, thin lines ${percent}% intervals from resampled rows. A difference is called clear by a paired test after Holm's correction.`,
    better: "clearly better", worse: "clearly worse", same: "no clear difference", against: (a, b) => `${a} against ${b}`, rows: n => `${n} rows`,
    all: "all rows", differ: "rows on which the models differ", gained: "rows on which a model is better than the first", lost: "rows on which a model is worse than the first", wrong: "rows that all models got wrong", find: "search the text",
    shown: (a, b) => `${a} of ${b} rows shown`, prompt: "prompt", text: "beginning of the text", expected: "expected", source: "source", lower: " (lower is better)", notes: "notes", p: "p", judge: "the judge",
    overlap: o => `overlap with the training data: ${o.seen} of ${o.compared} compared rows (half a row or more in equal runs of ${o.characters} characters)` + (o.too_short ? `; ${o.too_short} more rows have no text of their own of that length and were not compared` : ""), unseen: n => `the ${n} compared rows outside the training data` },
};
const lower = new Set(data.lower);
const number = (name, value) => lower.has(name) ? value.toFixed(value < 100 ? 3 : 1) : (100 * value).toFixed(1);
// bars are as wide as the page, so that letters keep their size
let before = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === before) return;
  before = innerWidth;
  for (const svg of document.querySelectorAll("svg[role=img]")) svg.again();
});
function bars(name, byModel) {
  const models = data.models, step = 30;
  const width = Math.max(300, document.getElementById("main").clientWidth), narrow = width < 640;
  const left = narrow ? 100 : 200, right = narrow ? 56 : 170, letters = narrow ? 11 : 24;
  const most = lower.has(name) ? Math.max(...models.map(m => byModel[m][name].high)) * 1.05 || 1 : 1;
  const height = models.length * step + 24, scale = v => left + Math.max(0, Math.min(1, v / most)) * (width - left - right);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.again = () => svg.replaceWith(bars(name, byModel));
  svg.append(drawn("title", {}, models.map(m => `${m}: ${number(name, byModel[m][name].value)}`).join(", ")));
  for (let tick = 0; tick <= 4; tick++) {
    const value = most * tick / 4, x = scale(value);
    svg.append(drawn("line", { x1: x, x2: x, y1: 0, y2: height - 20 }));
    svg.append(drawn("text", { x, y: height - 5, "text-anchor": "middle", class: "axis" }, number(name, value)));
  }
  models.forEach((model, at) => {
    const score = byModel[model][name], y = at * step + 4, middle = y + 10;
    svg.append(drawn("text", { x: left - 8, y: middle + 5, "text-anchor": "end" }, ending(model, letters)));
    svg.append(drawn("rect", { x: left, y, width: Math.max(1, scale(score.value) - left), height: 20, rx: 3, fill: `var(--c${at % 5})` }));
    svg.append(drawn("line", { x1: scale(score.low), x2: scale(score.high), y1: middle, y2: middle, class: "interval" }));
    for (const edge of [score.low, score.high])
      svg.append(drawn("line", { x1: scale(edge), x2: scale(edge), y1: middle - 5, y2: middle + 5, class: "interval" }));
    svg.append(drawn("text", { x: width - right + 8, y: middle + 5 }, narrow ? number(name, score.value) : `${number(name, score.value)} (${number(name, score.low)}–${number(name, score.high)})`));
  });
  return svg;
}
function verdict(found) {
  const say = words[language], name = found.score;
  const kind = found.better === null ? "same" : found.better ? "better" : "worse";
  const sign = found.value >= 0 ? "+" : "";
  const text = `${say.against(found.model, found.against)}: ${sign}${number(name, found.value)} [${number(name, found.low)}, ${number(name, found.high)}], ${say.p} ${found.p_adjusted.toPrecision(2)}: ${say[kind]}`;
  return node("div", { className: `verdict ${kind}`, textContent: text });
}
function matches(row, filter, text, task) {
  const sign = task.lower ? -1 : 1, first = row.values[0];
  const kept = { all: true, differ: row.values.some(v => v !== first), gained: row.values.some(v => sign * (v - first) > 0),
    lost: row.values.some(v => sign * (v - first) < 0), wrong: row.values.every(v => v === 0) }[filter];
  return kept && (!text || [row.prompt, row.expected, ...row.answers].some(part => part.includes(text)));
}
function shownRow(row, task) {
  const say = words[language];
  const values = row.values.map((value, at) => node("span", {
    className: task.lower ? "" : value === 1 ? "right" : value === 0 ? "wrong" : "",
    textContent: `${data.models[at]}: ${task.lower ? value.toFixed(3) : number(task.score, value)}  `,
  }));
  const ofText = task.kind === "text", lines = row.prompt.trim().split("\n");
  const asked = ofText ? beginning(lines.slice(0, 3).join(" "), 70) : ending(lines.slice(-3).join(" "), 70);
  return folded([`${row.place}  `, ...values, node("span", { className: "asked", textContent: asked })], () => {
    const cells = node("div", { className: "cells" });
    if (row.expected) cells.append(cell(say.expected, row.expected));
    if (!ofText) row.answers.forEach((answer, at) => cells.append(cell(data.models[at], answer)));
    row.judged.forEach((said, at) => said && cells.append(cell(`${data.models[at]} (${say.judge})`, said)));
    return row.prompt ? [cell(ofText ? say.text : say.prompt, row.prompt), cells] : [cells];
  });
}
function section(name) {
  const say = words[language], task = data.tasks[name], scores = data.scores[name];
  const made = node("section", {}, node("h2", { textContent: `${name} (${say.rows(task.number)})` }));
  if (task.source) made.append(node("p", { className: "faint", textContent: `${say.source}: ${task.source}` }));
  const overlap = data.contamination[name];
  if (overlap) made.append(node("div", { className: "verdict" + (overlap.seen ? " worse" : ""), textContent: say.overlap(overlap) }));
  for (const score of Object.keys(scores[data.models[0]])) {
    if (score === "answers") continue;
    made.append(node("p", { textContent: score + (lower.has(score) ? say.lower : "") }), bars(score, scores));
    for (const model of data.models) {
      const unseen = scores[model][score].unseen;
      if (unseen) made.append(node("p", { className: "faint", textContent: `${model}, ${say.unseen(unseen.rows)}: ${number(score, unseen.value)} (${number(score, unseen.low)}–${number(score, unseen.high)})` }));
    }
  }
  for (const found of data.differences) if (found.task === name) made.append(verdict(found));
  const kinds = ["all", ...(data.models.length > 1 ? ["differ", "gained", "lost"] : []), ...(task.lower ? [] : ["wrong"])];
  const choose = (kind, text) => task.rows.filter(row => matches(row, kind, text, task));
  made.append(...listed(say.all, kinds, choose, row => shownRow(row, task), task.number, 50));
  return made;
}
const heading = say => say.title;
function sections(say) {
  const notes = data.notes.length ? [node("div", { className: "verdict", textContent: `${say.notes}: ${data.notes.join("; ")}` })] : [];
  return [...notes, ...Object.keys(data.tasks).map(section)];
}
