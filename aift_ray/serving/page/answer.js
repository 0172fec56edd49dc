// One answer on the page: its thought, its text, its figures and its buttons.

import { said, thoughtOf } from "./conversation.js";
import { copy } from "./clipboard.js";
import { Markdown } from "./markdown.js";
import * as probabilities from "./probabilities.js";
import * as settings from "./settings.js";
import { parted } from "./thoughts.js";
import { say, text, translate } from "./words.js";

/**
 * The view of a column of a turn.
 *
 * again: called for another answer; turned: called after another version was chosen.
 */
export class AnswerView {
  #answer = null;
  #column;
  #markdown;
  #painting = null;
  #pause = 0;
  #tokens = false;

  constructor(column, letter, { again, turned }) {
    this.#column = column;
    this.element = document.getElementById("answer").content.cloneNode(true).firstElementChild;
    this.#markdown = new Markdown(this.part(".answer-text"));
    this.part(".letter").textContent = letter;
    this.part(".again").addEventListener("click", again);
    this.part("footer .copy").addEventListener("click", ({ target }) => copy(said(this.#answer), target));
    this.part(".probabilities").addEventListener("click", () => this.#switch());
    for (const [name, step] of [[".before", -1], [".after", 1]]) {
      this.part(name).addEventListener("click", () => {
        column.shown += step;
        turned();
      });
    }
    translate(this.element);
  }

  part = (name) => this.element.querySelector(name);

  /** An answer begins. */
  begin(answer) {
    this.#answer = answer;
    this.#tokens = false;
    this.element.classList.add("running");
    this.element.setAttribute("aria-busy", "true");
    this.#clear();
    this.part(".name").textContent = answer.model;
    say(this.part(".waiting"), "waiting");
    this.part("footer").classList.add("live");
  }

  /** More of it came; it is painted with the next frame. painted: called after that. */
  grow(figures, painted) {
    if (this.#painting) return;
    const planned = {};
    this.#painting = planned;
    const paint = () => {
      if (this.#painting !== planned) return;
      this.#painting = null;
      const start = performance.now();
      const follow = painted();
      this.#paint(false);
      say(this.part(".figures"), "figures_live", figures());
      follow();
      // a long answer takes a while, and the page has more to do
      this.#pause = 3 * (performance.now() - start);
    };
    setTimeout(() => requestAnimationFrame(paint), this.#pause > 30 ? this.#pause : 0);
  }

  /** Show an answer that is at its end, the pages of versions, and what can be done. */
  show(answer, isLast) {
    this.#painting = null;
    if (answer !== this.#answer) this.#tokens = false;
    this.#answer = answer;
    this.element.classList.remove("running");
    this.element.setAttribute("aria-busy", "false");
    this.part("footer").classList.remove("live");
    if (!answer) return;
    this.part(".name").textContent = answer.model;
    this.#paint(true);
    this.#figures(answer);
    this.#fail(answer);
    const { versions, shown } = this.#column;
    this.part(".pages").hidden = versions.length < 2 || !isLast;
    this.part(".page").textContent = `${shown + 1}/${versions.length}`;
    this.part(".before").disabled = shown === 0;
    this.part(".after").disabled = shown === versions.length - 1;
    say(this.part(".again"), answer.failure ? "retry" : "again");
    this.part(".again").hidden = false;
    this.part("footer .copy").hidden = !said(answer);
    this.part(".probabilities").hidden = !answer.probabilities?.length;
    this.part(".probabilities").setAttribute("aria-pressed", String(this.#tokens));
  }

  #clear() {
    this.#markdown.clear();
    const [sentence, detail] = this.part(".problem").children;
    say(sentence, null);
    detail.textContent = "";
    say(this.part(".figures"), null);
    this.part(".thought").hidden = true;
    this.part(".thought").open = false;
    for (const name of [".again", "footer .copy", ".probabilities", ".pages"]) {
      this.part(name).hidden = true;
    }
  }

  #paint(ended) {
    const answer = this.#answer;
    const { answer: content, open } = parted(answer.content, ended);
    const thinking = !ended && !content && (open || Boolean(answer.reasoning));
    this.#think(answer, thinking, ended);
    const body = this.part(".answer-text");
    const waits = !ended && !content && !thinking;
    const nothing = ended && !content && !answer.failure && !answer.stopped;
    say(this.part(".waiting"), waits ? "waiting" : nothing ? "empty" : null);
    if (this.#tokens && ended) {
      this.#markdown.clear();
      probabilities.show(body, answer.probabilities);
      return;
    }
    const marked = settings.isOn("markdown");
    body.classList.toggle("plain", !marked);
    if (marked) {
      if (body.dataset.plain || body.querySelector(".tokens")) this.#markdown.clear();
      this.#markdown.show(content);
    } else {
      this.#markdown.clear();
      body.textContent = content;
    }
    body.dataset.plain = marked ? "" : "yes";
  }

  #think(answer, thinking, ended) {
    const thought = ended ? thoughtOf(answer) : (answer.reasoning || parted(answer.content).thought);
    const folded = this.part(".thought");
    folded.hidden = !thought && !thinking;
    if (folded.hidden) return;
    const seconds = answer.thinking === null ? "–" : answer.thinking.toFixed(1);
    say(folded.querySelector("summary"), thinking ? "thinking" : "thought", { seconds });
    const body = folded.querySelector(".text");
    const follows = body.scrollHeight - body.scrollTop - body.clientHeight < 30;
    body.textContent = thought;
    if (thinking && follows) body.scrollTop = body.scrollHeight;
  }

  #figures(answer) {
    const { tokens, rate, wait, stopped, finish, failure } = answer;
    const word = stopped ? "figures_stopped" : finish === "length" ? "figures_length" : "figures";
    const values = {
      tokens: tokens?.toLocaleString() ?? "–",
      rate: rate?.toFixed(1) ?? "–",
      wait: wait?.toFixed(2) ?? "–",
    };
    say(this.part(".figures"), failure ? null : word, values);
  }

  #fail({ failure }) {
    const [sentence, detail] = this.part(".problem").children;
    say(sentence, failure?.word, failure?.filling);
    detail.textContent = failure?.detail ?? "";
  }

  #switch() {
    this.#tokens = !this.#tokens;
    this.part(".probabilities").setAttribute("aria-pressed", String(this.#tokens));
    this.#paint(true);
  }

  /** What a screen reader is told when it is there. */
  spoken() {
    return said(this.#answer) || text("empty");
  }
}
