const words = {
  ja: { title: "学習レポート", other: "English", lead: "評価用プロンプトへの応答（プロンプトごとに最初の1つ）と、学習の推移です。評価では毎回同じ乱数を使います。",
    curves: "推移", reward: "報酬", length: "応答の長さ（トークン）", entropy: "エントロピー（nat）", kl: "参照モデルとのKL", train: "学習", evaluation: "評価", step: "ステップ",
    samples: n => `評価の応答（プロンプト ${n} 件）`, order: "並び順", given: "ファイルの順", gained: "報酬が上がった順", lost: "報酬が下がった順", low: "最後の報酬が低い順",
    find: "本文を検索", shown: (a, b) => `${b} 件中 ${a} 件を表示`, prompt: "プロンプト", none: "報酬なし" },
  en: { title: "Training report", other: "日本語", lead: "Completions of evaluation prompts, the first of each prompt, and the course of training. Each evaluation draws the same random numbers.",
    curves: "Course of training", reward: "reward", length: "tokens of a completion", entropy: "entropy (nats)", kl: "KL from the reference", train: "training", evaluation: "evaluation", step: "step",
    samples: n => `Completions of evaluations (${n} prompts)`, order: "order", given: "as in the file", gained: "largest gain of reward first", lost: "largest loss of reward first", low: "lowest last reward first",
    find: "search the text", shown: (a, b) => `${a} of ${b} prompts shown`, prompt: "prompt", none: "no reward" },
};
const number = value => value === null ? words[language].none : Number(value.toPrecision(4)).toString();
function chart(label, curves) {
  const say = words[language], width = 480, height = 220, left = 56, right = 12, top = 10, bottom = 26;
  const points = curves.flatMap(curve => curve.points);
  let low = Math.min(...points.map(p => p[1])), high = Math.max(...points.map(p => p[1]));
  if (low === high) { low -= Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
  const first = Math.min(...points.map(p => p[0])), last = Math.max(...points.map(p => p[0]), first + 1);
  const x = step => left + (step - first) / (last - first) * (width - left - right);
  const y = value => top + (high - value) / (high - low) * (height - top - bottom);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.append(drawn("title", {}, say[label]));
  for (let tick = 0; tick <= 4; tick++) {
    const value = low + (high - low) * tick / 4, step = first + (last - first) * tick / 4;
    svg.append(drawn("line", { x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", class: "axis" }, Number(value.toPrecision(3)).toString()));
    if (Number.isInteger(step) || tick % 4 === 0)
      svg.append(drawn("text", { x: x(step), y: height - 6, "text-anchor": tick === 4 ? "end" : "middle", class: "axis" }, Math.round(step).toString()));
  }
  const keys = node("div");
  curves.forEach((curve, at) => {
    if (!curve.points.length) return;
    const tested = curve.name.startsWith("eval_"), color = `var(--c${tested ? 1 : 0})`;
    const polyline = drawn("polyline", { points: curve.points.map(p => `${x(p[0])},${y(p[1])}`).join(" ") });
    polyline.style.stroke = color;
    svg.append(polyline);
    if (tested || curve.points.length === 1) for (const p of curve.points) {
      const dot = drawn("circle", { cx: x(p[0]), cy: y(p[1]), r: 3.5 });
      dot.style.fill = color;
      svg.append(dot);
    }
    const key = node("span", { className: "key", textContent: `● ${tested ? say.evaluation : say.train}: ${number(curve.points[0][1])} → ${number(curve.points[curve.points.length - 1][1])}` });
    key.style.color = color;
    keys.append(key);
  });
  return node("section", {}, node("h3", { textContent: say[label] }), svg, keys);
}
const ends = row => { const of = row.completions; return [of[0].reward, of[of.length - 1].reward]; };
const gain = row => { const [a, b] = ends(row); return a === null || b === null ? 0 : b - a; };
function shownPrompt(row) {
  const say = words[language], [a, b] = ends(row), change = gain(row);
  const kind = change > 0 ? "right" : change < 0 ? "wrong" : "";
  const told = row.completions.length > 1 ? `${number(a)} → ${number(b)}  ` : `${number(a)}  `;
  const asked = ending(row.prompt.trim().split("\n").join(" "), 80);
  const summary = [node("span", { className: kind, textContent: told }), node("span", { className: "asked", textContent: asked })];
  return folded(summary, () => [cell(say.prompt, row.prompt), ...row.completions.map(made => {
    const several = Object.entries(made.rewards);
    const parts = several.length > 1 ? ` (${several.map(([name, value]) => `${name} ${number(value)}`).join(", ")})` : "";
    return cell(`${say.step} ${made.step}: ${say.reward} ${number(made.reward)}${parts}`, made.text);
  })]);
}
function samples() {
  const say = words[language];
  const keys = { given: () => 0, gained: row => -gain(row), lost: gain, low: row => ends(row)[1] ?? -Infinity };
  const choose = (kind, text) => data.prompts
    .filter(row => !text || [row.prompt, ...row.completions.map(each => each.text)].some(part => part.includes(text)))
    .sort((one, two) => keys[kind](one) - keys[kind](two));
  return node("section", {}, node("h2", { textContent: say.samples(data.prompts.length) }),
    ...listed(say.order, Object.keys(keys), choose, shownPrompt, data.prompts.length));
}
const heading = say => `${say.title}: ${data.run}`;
function sections(say) {
  const charts = Object.entries(data.curves).filter(([, curves]) => curves.some(curve => curve.points.length));
  return [...(charts.length ? [node("h2", { textContent: say.curves })] : []),
    node("div", { className: "charts" }, ...charts.map(([label, curves]) => chart(label, curves))), samples()];
}
