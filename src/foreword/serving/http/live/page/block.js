// One block of the tree: its element, and what there is to say about it.

import { count, make, oneLine, plural, say } from "./format.js";

const ROOMY = 64; // pixels from which on a block with branches has its text inside,
const WIDE = 130; // and what else there is to say

export class Block {
  constructor(id) {
    this.id = id;
    this.inside = make("span", "inside");
    this.note = make("b", "note");
    this.bar = make("div", "bar", make("div", "label", this.note, this.inside));
    this.beside = make("span", "beside");
    this.kids = make("div", "kids");
    this.element = make("div", "node new", this.bar, this.beside);
    this.element.setAttribute("role", "treeitem");
    this.element.dataset.id = id;
    this.element.tabIndex = -1;
    this.kids.setAttribute("role", "group");
    this.below = 0;
  }

  show(node, texts) {
    this.node = node;
    this.texts = texts;
    this.bar.dataset.heat = heat(node.readers);
    this.bar.classList.toggle("shared", texts > 1);
    this.bar.classList.toggle("pinned", node.pinned);
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
    const label = `${this.title(60)}, ${plural(node.tokens, "token")}, ${facts(node)}${branches}`;
    if (element.getAttribute("aria-label") !== label) element.setAttribute("aria-label", label);
    this.closed = closed;
  }

  widen(pixels) {
    const branching = this.below > 0 && !this.closed;
    const roomy = branching && pixels >= ROOMY;
    this.bar.style.width = `${pixels.toFixed(1)}px`;
    const badge = this.texts > 2 && pixels >= WIDE ? this.badge() : "";
    say(this.inside, roomy ? `${this.title(600)}` : "");
    say(this.note, roomy ? badge : "");
    this.note.hidden = !roomy || !badge;
    // At the end of a branch the text begins on the bar and runs on beside it, where it stays
    // readable on the bar's colour.
    this.element.classList.toggle("over", !branching && this.node.readers < 3);
    const folded = this.closed ? ` … ${plural(this.below, "branch", "branches")} folded` : "";
    say(this.beside, branching ? "" : this.title(240) + folded);
    this.beside.hidden = branching;
  }

  badge() {
    const { readers, pins } = this.node;
    const parts = [`begins ${count(this.texts)} texts`];
    if (readers > 1) parts.push(`read by ${count(readers)} now`);
    if (pins) parts.push(`pinned as ${pins.join(", ")}`);
    return parts.join(", ");
  }

  choose(chosen) {
    this.element.setAttribute("aria-selected", String(chosen));
  }

  title(most) {
    const { node } = this;
    const whole = node.tail ? `${node.text} … ${node.tail}` : (node.text ?? "");
    const text = [...learned(node).map((name) => `[${name}]`), oneLine(whole).trim()].join(" ").trim();
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
export function describe({ node, texts }, showsText) {
  let text = "The text of blocks is not shown on this server.";
  if (showsText) {
    const left = node.tail ? `\n… ${count(node.tokens - 40)} tokens …\n` : "";
    text = node.text + left + (node.tail ?? "") || "Special tokens without a text.";
  }
  const last = node.start + node.tokens;
  const place = node.tokens === 1 ? `Token ${count(last)}` : `Tokens ${count(node.start + 1)} to ${count(last)}`;
  const begins = texts > 1 ? `, begins ${count(texts)} texts` : "";
  const lines = [text, `${place}, ${facts(node)}${begins}.`];
  if (node.tenants) {
    const by = node.tenants.map(([name, readers]) => `${name || "no tenant"} ${count(readers)}`);
    lines.push(`Read by ${by.join(", ")}.`);
  }
  if (node.learned) lines.push(`Learned: ${learned(node).join(", ")}.`);
  if (node.pinned) {
    lines.push(node.pins ? `Pinned as ${node.pins.join(", ")}: it stays.` : "Pinned: it stays.");
  }
  if (node.private !== undefined) {
    lines.push(`From here on only ${node.private || "one tenant"} can use it.`);
  }
  return lines;
}

/** Names of the learned prefixes that have positions in a block. */
function learned(node) {
  return (node.learned ?? []).map((name) => name || "unloaded prefix");
}

function facts(node) {
  const pending = node.tokens - node.computed;
  const readers = node.readers ? `read by ${plural(node.readers, "answer")} now` : "kept for later";
  return pending > 1 ? `${readers}, ${count(pending)} tokens still to be computed` : readers;
}

function heat(readers) {
  return readers < 3 ? readers : readers < 8 ? 3 : 4;
}
