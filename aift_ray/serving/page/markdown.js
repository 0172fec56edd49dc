// Markdown of a model as nodes of the page.
//
// No text ever becomes HTML: the parser gives tokens, and only the elements that are named here are
// made of them. Whatever else a model writes, tags included, is shown as the text that it is.

import MarkdownIt from "./vendor/markdown-it.js";
import cjkFriendly from "./vendor/markdown-it-cjk-friendly.js";
import { copyButton } from "./clipboard.js";
import { highlighted } from "./highlight.js";
import { say } from "./words.js";

// emphasis next to Japanese punctuation, as in **重要：**これは, is none by CommonMark's own rules
const parser = new MarkdownIt({ html: false, breaks: true, linkify: true }).use(cjkFriendly);
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
const SAFE = /^(https?:\/\/|mailto:)/i;
parser.validateLink = (url) => SAFE.test(url);

const ELEMENTS = {
  paragraph_open: "p",
  bullet_list_open: "ul",
  ordered_list_open: "ol",
  list_item_open: "li",
  blockquote_open: "blockquote",
  table_open: "table",
  thead_open: "thead",
  tbody_open: "tbody",
  tr_open: "tr",
  th_open: "th",
  td_open: "td",
  strong_open: "strong",
  em_open: "em",
  s_open: "s",
};
const SINGLE = {
  text: (token) => textNodes(token.content),
  softbreak: () => [document.createElement("br")],
  hardbreak: () => [document.createElement("br")],
  hr: () => [document.createElement("hr")],
  inline: (token) => nodesOf(token.children),
  code_inline: (token) => [element("code", token.content)],
  code_block: (token) => [codeBlock(token.content, "")],
  fence: (token) => [codeBlock(token.content, token.info.trim().split(/\s+/)[0])],
  image: (token) => [imageLink(token)],
};

/** Shows a text that may still grow; blocks that did not change stay, and a selection in them. */
export class Markdown {
  #element;
  #blocks = [];

  constructor(element) {
    this.#element = element;
  }

  show(source) {
    const environment = {};
    const tokens = parser.parse(source, environment);
    // a definition further down changes the links above it
    const links = JSON.stringify(environment.references ?? {});
    const lines = source.split(/\r\n?|\n/);
    settleHeadings(tokens);
    const blocks = grouped(tokens).map((group) => {
      const [{ type, meta, map: [from, to] }] = group;
      return { group, key: `${type} ${meta} ${links} ${lines.slice(from, to).join("\n")}` };
    });
    let same = 0;
    while (same < blocks.length && blocks[same].key === this.#blocks[same]?.key) same += 1;
    for (const { nodes } of this.#blocks.splice(same)) nodes.forEach((node) => node.remove());
    for (const { group, key } of blocks.slice(same)) {
      const nodes = [...nodesOf(group)];
      this.#element.append(...nodes);
      this.#blocks.push({ key, nodes });
    }
  }

  clear() {
    this.#blocks = [];
    this.#element.replaceChildren();
  }
}

/** The tokens of each block of the top level. */
function grouped(tokens) {
  const groups = [];
  for (const token of tokens) {
    if (token.level === 0 && token.nesting >= 0) groups.push([]);
    groups.at(-1).push(token);
  }
  return groups;
}

function nodesOf(tokens) {
  const stack = [document.createDocumentFragment()];
  for (const token of tokens) {
    if (token.nesting === 1) {
      const made = opened(token);
      if (made) stack.at(-1).append(outer(made));
      // what has no element of its own goes into the one around it
      stack.push(made ?? stack.at(-1));
    } else if (token.nesting === -1) stack.pop();
    else stack.at(-1).append(...(SINGLE[token.type]?.(token) ?? [token.content]));
  }
  return stack[0].childNodes;
}

function opened(token) {
  if (token.hidden) return null;
  if (token.type === "link_open") return link(token.attrGet("href"));
  if (token.type === "heading_open") return heading(token);
  if (!Object.hasOwn(ELEMENTS, token.type)) return null;
  const made = document.createElement(ELEMENTS[token.type]);
  if (token.attrGet("start")) made.start = token.attrGet("start");
  const side = /text-align:(\w+)/.exec(token.attrGet("style") ?? "")?.[1];
  if (side) made.className = `to-${side}`;
  return made;
}

/** How deep each heading is: below those of the page, and no step left out. */
function settleHeadings(tokens) {
  const above = [];
  for (const token of tokens.filter(({ type }) => type === "heading_open")) {
    const level = Number(token.tag.slice(1));
    while (above.at(-1) >= level) above.pop();
    above.push(level);
    token.meta = Math.min(above.length + 3, 6);
  }
}

function heading(token) {
  const made = document.createElement(`h${token.meta}`);
  made.className = `level-${token.tag.slice(1)}`;
  return made;
}

// what is too wide scrolls by itself, with the keyboard too
function outer(made) {
  if (made.localName !== "table") return made;
  const frame = element("div", "");
  Object.assign(frame, { className: "scroll", tabIndex: 0 });
  frame.append(made);
  return frame;
}

function link(url) {
  const made = element("a", "");
  if (!SAFE.test(url)) return made;
  return Object.assign(made, { href: url, target: "_blank", rel: "noopener noreferrer nofollow" });
}

// an image would tell its host of this conversation, so it is a link that a user may follow
function imageLink(token) {
  const url = token.attrGet("src");
  const made = link(url);
  const kind = element("span", "");
  say(kind, "image");
  made.append(kind, token.content || url);
  return made;
}

function codeBlock(content, language) {
  const figure = element("figure", "");
  const caption = element("figcaption", "");
  const code = content.replace(/\n$/, "");
  caption.append(element("span", language), copyButton(() => code));
  const frame = element("pre", "");
  frame.tabIndex = 0;
  const shown = element("code", "");
  shown.append(highlighted(code, language));
  frame.append(shown);
  figure.append(caption, frame);
  return figure;
}

// models break lines in cells of tables with the one tag that there is for it
function textNodes(content) {
  const [first, ...rest] = content.split(/<br\s*\/?>/i);
  return [first, ...rest.flatMap((part) => [document.createElement("br"), part])];
}

function element(name, content) {
  const made = document.createElement(name);
  made.textContent = content;
  return made;
}
