// One block of the tree: its element, and what there is to say about it.

import { count, make, oneLine, plural, say } from "./format.js";

const ROOMY = 64; // pixels from which on a block with branches has its text inside

export class Block {
  constructor(id) {
    this.id = id;
    this.inside = make("span", "inside");
    this.bar = make("div", "bar", this.inside);
    this.beside = make("span", "beside");
    this.kids = make("div", "kids");
    this.element = make("div", "node new", this.bar, this.beside);
    this.element.setAttribute("role", "treeitem");
    this.element.dataset.id = id;
    this.element.tabIndex = -1;
    this.kids.setAttribute("role", "group");
    this.below = 0;
  }

  show(node) {
    this.node = node;
    this.bar.dataset.heat = heat(node.readers);
    this.bar.classList.toggle("held", node.held);
    this.bar.classList.toggle("pending", node.computed < node.tokens && node.computed === 0);
  }

  /** Its place in the outline: level, number of children, and whether they are folded away. */
  outline(level, below, closed) {
    this.below = below;
    const { element, node } = this;
    element.setAttribute("aria-level", level);
    if (below) element.setAttribute("aria-expanded", String(!closed));
    else element.removeAttribute("aria-expanded");
    if (below && !closed) {
      if (this.kids.parentElement !== element) element.append(this.kids);
    } else {
      this.kids.remove();
    }
    const branches = below ? `, ${plural(below, "branch", "branches")}` : "";
    const label = `${this.title(60)}, ${facts(node)}${branches}`;
    if (element.getAttribute("aria-label") !== label) element.setAttribute("aria-label", label);
    this.closed = closed;
  }

  widen(pixels) {
    this.bar.style.width = `${pixels.toFixed(1)}px`;
    const readers = this.node.readers > 1 ? ` ×${this.node.readers}` : "";
    const branching = this.below > 0 && !this.closed;
    const roomy = branching && pixels >= ROOMY;
    say(this.inside, roomy ? this.title(600) : "");
    this.bar.dataset.readers = roomy || pixels >= 30 ? readers : "";
    const folded = this.closed ? ` … ${plural(this.below, "branch", "branches")} folded` : "";
    say(this.beside, branching ? "" : this.title(160) + folded);
    this.beside.hidden = branching;
  }

  choose(chosen) {
    this.element.setAttribute("aria-selected", String(chosen));
  }

  title(most) {
    const { node } = this;
    const whole = node.tail ? `${node.text} … ${node.tail}` : (node.text ?? "");
    const text = oneLine(whole).trim();
    if (!text) return plural(node.tokens, "token");
    return text.length > most ? `${text.slice(0, most)}…` : text;
  }

  /** Let it fade away; it is no part of the tree any more. */
  fade(milliseconds) {
    this.element.classList.add("gone");
    for (const each of [this.element, ...this.element.querySelectorAll("*")]) {
      each.removeAttribute("role");
      each.removeAttribute("tabindex");
    }
    this.element.setAttribute("aria-hidden", "true");
    setTimeout(() => this.element.remove(), milliseconds);
  }
}

/** The chosen block in words: its text, then facts. */
export function describe(node, showsText) {
  let text = "The text of blocks is not shown on this server.";
  if (showsText) {
    const left = node.tail ? `\n… ${count(node.tokens - 40)} tokens …\n` : "";
    text = node.text + left + (node.tail ?? "") || "Special tokens without a text.";
  }
  const lines = [text, `Tokens ${count(node.start + 1)} to ${count(node.start + node.tokens)}:`];
  lines.push(`${facts(node)}.`);
  if (node.tenants) {
    const by = node.tenants.map(([name, readers]) => `${name || "no tenant"} ${count(readers)}`);
    lines.push(`Read by ${by.join(", ")}.`);
  }
  if (node.held) lines.push("Kept on purpose: it is not dropped.");
  if (node.private !== undefined) {
    lines.push(`From here on only ${node.private || "one tenant"} can use it.`);
  }
  return lines;
}

function facts(node) {
  const pending = node.tokens - node.computed;
  const waiting = pending > 1 ? `, ${count(pending)} of them still to be computed` : "";
  const readers = node.readers ? `in use by ${plural(node.readers, "answer")}` : "kept, not in use";
  return `${plural(node.tokens, "token")}${waiting}, ${readers}`;
}

function heat(readers) {
  return readers < 2 ? readers : readers < 4 ? 2 : readers < 8 ? 3 : 4;
}
