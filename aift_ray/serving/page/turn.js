// One turn on the page: a question that can be edited, an answer or two, the choice between them.

import { AnswerView } from "./answer.js";
import { answerOf, comparable, continued, prefer, preference } from "./conversation.js";
import { copy } from "./clipboard.js";
import { sendsOn } from "./keys.js";
import { say, translate } from "./words.js";

const LETTERS = ["A", "B"];

/**
 * The view of a turn.
 *
 * turn: the data. parent: what it comes after. acts: {again(view, column), edit(turn, question),
 * changed(): the data was changed, moved(): other turns are to be seen}.
 */
export class TurnView {
  #parent;
  #acts;
  #isLast = true;

  constructor(turn, parent, acts) {
    this.turn = turn;
    this.#parent = parent;
    this.#acts = acts;
    this.element = document.getElementById("turn").content.cloneNode(true).firstElementChild;
    this.part(".question .text").textContent = turn.question;
    this.answers = turn.columns.map((column, index) => {
      const letter = turn.columns.length > 1 ? LETTERS[index] : "";
      const again = () => acts.again(this, index);
      const turned = () => {
        acts.changed();
        this.show(this.#isLast, false);
      };
      return new AnswerView(column, letter, { again, turned });
    });
    const columns = this.part(".columns");
    columns.append(...this.answers.map(({ element }) => element));
    columns.classList.toggle("two", turn.columns.length > 1);
    this.#wire();
    translate(this.element);
  }

  part = (name) => this.element.querySelector(name);

  /** Show what there is. isLast: whether nothing was asked after it; busy: an answer is under way. */
  show(isLast, busy) {
    this.#isLast = isLast;
    const { turn } = this;
    this.answers.forEach((view, column) => {
      if (!view.element.classList.contains("running")) view.show(answerOf(turn, column), isLast);
      const goesOn = !isLast && turn.columns.length > 1 && continued(turn) === column;
      view.part(".goes-on").hidden = !goesOn;
      view.part(".again").disabled = busy;
      for (const name of [".before", ".after"]) view.part(name).disabled ||= busy;
    });
    this.#showPages(busy);
    this.#showChoice(busy);
    this.part(".edit").disabled = busy;
  }

  #wire() {
    this.part(".edit").addEventListener("click", () => this.#edit());
    this.part(".copy-question").addEventListener("click", ({ target }) => {
      copy(this.turn.question, target);
    });
    for (const [name, step] of [[".before", -1], [".after", 1]]) {
      this.part(`.question ${name}`).addEventListener("click", () => {
        this.#parent.shown += step;
        this.#acts.moved();
      });
    }
    this.element.querySelectorAll(".better button").forEach((button, column) => {
      button.addEventListener("click", () => {
        prefer(this.turn, column);
        this.#acts.changed();
        this.show(this.#isLast, false);
        say(document.getElementById("spoken"), preference(this.turn) ? "chosen" : "not_chosen");
      });
    });
  }

  #showPages(busy) {
    const { next, shown } = this.#parent;
    const pages = this.part(".question .pages");
    pages.hidden = next.length < 2;
    pages.querySelector(".page").textContent = `${shown + 1}/${next.length}`;
    pages.querySelector(".before").disabled = busy || shown === 0;
    pages.querySelector(".after").disabled = busy || shown === next.length - 1;
  }

  #showChoice(busy) {
    const { turn } = this;
    const choice = preference(turn);
    this.part(".better").hidden = busy || !comparable(turn);
    this.element.querySelectorAll(".better button").forEach((button, column) => {
      button.setAttribute("aria-pressed", String(choice?.chosen[0] === column));
    });
    this.answers.forEach((view, column) => {
      view.element.classList.toggle("chosen", choice?.chosen[0] === column);
    });
  }

  #edit() {
    const form = document.getElementById("edit").content.cloneNode(true).firstElementChild;
    const area = form.querySelector("textarea");
    const question = this.part(".question");
    const end = () => {
      form.remove();
      question.classList.remove("edited");
      this.part(".edit").focus();
    };
    const send = () => {
      if (area.value.trim() && this.#acts.edit(this.turn, area.value)) end();
    };
    translate(form);
    area.value = this.turn.question;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    sendsOn(area, send);
    form.querySelector(".cancel").addEventListener("click", end);
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.stopPropagation();
      end();
    });
    question.classList.add("edited");
    question.append(form);
    area.focus();
  }
}
