// Code in colours, as nodes of the page.

import highlighter from "./vendor/highlight.js";

// a model may write more than what is worth the time
const MOST = 50_000;

/** Takes what the highlighter finds and makes nodes of it, where its own would make HTML. */
class Nodes {
  root = document.createDocumentFragment();
  #stack = [this.root];

  addText(text) {
    this.#stack.at(-1).append(text);
  }

  openNode(scope) {
    const made = document.createElement("span");
    made.className = `code-${scope.split(".")[0]}`;
    this.#stack.at(-1).append(made);
    this.#stack.push(made);
  }

  closeNode() {
    this.#stack.pop();
  }

  // the highlighter calls both names
  startScope = this.openNode;
  endScope = this.closeNode;

  __addSublanguage(emitter) {
    this.#stack.at(-1).append(emitter.root);
  }

  finalize() {}

  toHTML() {
    return "";
  }
}

highlighter.configure({ __emitter: Nodes });

/** The nodes of some code; plain text in a language that is not known. */
export function highlighted(code, language) {
  if (code.length > MOST || !highlighter.getLanguage(language)) return code;
  const { _emitter: emitter, errorRaised } = highlighter.highlight(code, {
    language,
    ignoreIllegals: true,
  });
  // nothing of the code may be lost
  return !errorRaised && emitter?.root.textContent === code ? emitter.root : code;
}
