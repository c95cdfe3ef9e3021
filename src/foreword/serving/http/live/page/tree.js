// The prefix tree as blocks from left to right, and as a tree for keyboards and screen readers.

import { Block, describe } from "./block.js";
import { count, plural, say } from "./format.js";
import { family, fit, texts } from "./shape.js";

const SHOWN = 8; // children of one block that are drawn at first
const FADE = 1600; // milliseconds in which a dropped block fades; as in page.css
const $ = (id) => document.getElementById(id);

export class Tree {
  constructor(root, detail) {
    this.root = root;
    this.detail = detail;
    this.blocks = new Map(); // id -> Block
    this.grounds = new Map(); // name -> element
    this.closed = new Set();
    this.unfolded = new Set();
    this.rests = new Map(); // parent id -> the row that stands for further children
    this.current = null; // the id that Tab comes to
    this.chosen = null;
    this.state = null;
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("click", (event) => this.click(event));
    root.addEventListener("focusin", (event) => this.focused(event.target));
    new ResizeObserver(() => this.state && this.measure()).observe(root);
  }

  update(state) {
    this.state = state;
    const focus = document.activeElement;
    const within = this.root.contains(focus);
    const home = within ? this.parentIds(focus) : [];
    this.family = family(state.nodes);
    this.exchange(state);
    this.arrange(state);
    this.measure();
    this.sizes(state);
    if (within && !(focus.isConnected && document.activeElement === focus)) this.refocus(focus, home);
    this.rove();
    this.tell();
  }

  /** Make blocks for new nodes; let those that were dropped fade, and the others go at once. */
  exchange(state) {
    const there = new Set(state.nodes.map((node) => node.id));
    const dropped = new Set(state.dropped);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.leaving = [];
    for (const [id, block] of this.blocks) {
      if (there.has(id)) continue;
      this.blocks.delete(id);
      this.closed.delete(id);
      this.unfolded.delete(id);
      if (dropped.has(id) && !calm) block.fade(FADE);
      else this.leaving.push(block.element);
    }
    const shared = texts(state.nodes);
    for (const node of state.nodes) {
      const block = this.blocks.get(node.id) ?? new Block(node.id);
      this.blocks.set(node.id, block);
      block.show(node, shared.get(node.id));
    }
  }

  /** Put every block where it belongs, and move none that is there already. */
  arrange(state) {
    const used = new Set();
    const several = state.grounds.length > 1;
    const elements = state.grounds.map((ground, index) => {
      const name = ground.kind === "common" ? "For everybody" : `Only for ${ground.tenant || "one caller"}`;
      const known = this.grounds.get(index) ?? this.ground(index);
      say(known.title, name);
      known.title.hidden = !several;
      if (several) known.element.setAttribute("aria-label", name);
      const tops = (this.family.get(null) ?? []).filter((node) => node.ground === index);
      this.fill(known.element, tops, `ground ${index}`, 0, 1, used);
      return known.element;
    });
    for (const [index, known] of this.grounds) {
      if (index < elements.length) continue;
      known.element.remove();
      this.grounds.delete(index);
    }
    place(this.root, elements);
    for (const element of this.leaving) element.remove();
    for (const [owner, row] of this.rests) {
      if (used.has(owner)) continue;
      row.remove();
      this.rests.delete(owner);
    }
  }

  ground(index) {
    const element = document.createElement("div");
    element.className = "ground";
    element.setAttribute("role", "group");
    const title = document.createElement("p");
    title.className = "ground-name";
    title.setAttribute("aria-hidden", "true");
    element.append(title);
    const known = { element, title };
    this.grounds.set(index, known);
    return known;
  }

  fill(container, nodes, owner, unsent, level, used) {
    const open = this.unfolded.has(owner) || nodes.length <= SHOWN + 1;
    const drawn = open ? nodes : nodes.slice(0, SHOWN);
    const elements = drawn.map((node) => {
      const block = this.blocks.get(node.id);
      const below = this.family.get(node.id) ?? [];
      const closed = this.closed.has(node.id);
      block.outline(level, below.length + node.more, closed);
      if (below.length + node.more && !closed) {
        this.fill(block.kids, below, node.id, node.more, level + 1, used);
      }
      return block.element;
    });
    const folded = nodes.length - drawn.length;
    if (folded + unsent) {
      elements.push(this.rest(owner, folded, unsent, level));
      used.add(owner);
    }
    for (const node of nodes.slice(drawn.length)) this.blocks.get(node.id).element.remove();
    place(container, elements);
  }

  /** The row that stands for children that are not drawn. */
  rest(owner, folded, unsent, level) {
    let row = this.rests.get(owner);
    if (!row) {
      row = document.createElement("div");
      row.setAttribute("role", "treeitem");
      row.tabIndex = -1;
      row.dataset.owner = owner;
      this.rests.set(owner, row);
    }
    row.className = folded ? "rest folded" : "rest";
    row.setAttribute("aria-level", level);
    say(row, folded ? `show ${folded + unsent} more` : `and ${unsent} more`);
    return row;
  }

  measure() {
    const visible = (id) => !this.closed.has(id);
    const width = this.root.clientWidth;
    const widths = fit(this.state.nodes, this.family, visible, width * (width < 480 ? 0.7 : 0.8));
    for (const [id, pixels] of widths) this.blocks.get(id).widen(pixels);
  }

  sizes(state) {
    const cache = state.cache;
    const hidden = state.hidden.nodes;
    $("empty").hidden = cache.nodes > 0;
    this.root.hidden = cache.nodes === 0;
    $("tree-keys").hidden = cache.nodes === 0;
    $("legend-pinned").hidden = !state.nodes.some((node) => node.pinned);
    const more = hidden > 0 ? `, ${count(hidden)} of them not drawn` : "";
    say($("tree-size"), `${plural(cache.tokens, "token")} in ${plural(cache.nodes, "block")}${more}`);
  }

  // -- keyboard and pointer ----------------------------------------------------------------------

  items() {
    return [...this.root.querySelectorAll('[role="treeitem"]')];
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const item = event.target.closest('[role="treeitem"]');
    const items = this.items();
    const at = items.indexOf(item);
    if (at < 0) return;
    const id = idOf(item);
    const expanded = item.getAttribute("aria-expanded");
    let to = null;
    if (event.key === "ArrowDown") to = items[at + 1];
    else if (event.key === "ArrowUp") to = items[at - 1];
    else if (event.key === "Home") to = items[0];
    else if (event.key === "End") to = items[items.length - 1];
    else if (event.key === "ArrowRight" && expanded === "true") to = items[at + 1];
    else if (event.key === "ArrowRight" && expanded === "false") this.toggle(id);
    else if (event.key === "ArrowLeft" && expanded === "true") this.toggle(id);
    else if (event.key === "ArrowLeft") to = item.parentElement.closest('[role="treeitem"]');
    else if (event.key === "Enter" || event.key === " ") this.open(item);
    else return;
    event.preventDefault();
    to?.focus();
  }

  click(event) {
    const item = event.target.closest('[role="treeitem"]');
    if (!item) return;
    item.focus({ preventScroll: true });
    this.open(item);
  }

  open(item) {
    if (item.classList.contains("rest")) {
      if (!item.classList.contains("folded")) return;
      const owner = item.dataset.owner;
      const before = item.previousElementSibling;
      this.unfolded.add(owner.startsWith("ground") ? owner : Number(owner));
      this.update(this.state);
      before?.nextElementSibling?.focus();
      return;
    }
    this.chosen = this.chosen === idOf(item) ? null : idOf(item);
    this.tell();
  }

  toggle(id) {
    if (!this.closed.delete(id)) this.closed.add(id);
    this.update(this.state);
  }

  focused(target) {
    const item = target.closest('[role="treeitem"]');
    if (!item) return;
    this.current = item.dataset.owner ? null : idOf(item);
    this.rove(item);
  }

  /** One item, and only one, is reached by Tab. */
  rove(item = null) {
    const focus = item ?? this.blocks.get(this.current)?.element;
    const items = this.items();
    const one = items.includes(focus) ? focus : items[0];
    for (const each of items) each.tabIndex = each === one ? 0 : -1;
  }

  parentIds(element) {
    const ids = [];
    for (let at = element; at && at !== this.root; at = at.parentElement) {
      if (at.dataset.id) ids.push(Number(at.dataset.id));
    }
    return ids;
  }

  refocus(focus, home) {
    const next = focus.isConnected && focus.getAttribute("role") ? focus : null;
    const near = home.map((id) => this.blocks.get(id)?.element).find((each) => each?.isConnected);
    (next ?? near ?? this.items()[0])?.focus({ preventScroll: true });
  }

  // -- the chosen block --------------------------------------------------------------------------

  tell() {
    for (const block of this.blocks.values()) block.choose(block.id === this.chosen);
    if (this.chosen === null) {
      this.detail.hidden = true;
      return;
    }
    const block = this.blocks.get(this.chosen);
    const lines = block
      ? describe(block, this.state.shows_text)
      : ["This block is not in the tree any more, or too small a part of it to be drawn."];
    this.detail.hidden = false;
    const [text, ...facts] = lines;
    if (this.detail.children.length !== 2) {
      this.detail.replaceChildren(document.createElement("p"), document.createElement("p"));
      this.detail.firstChild.className = "text";
    }
    say(this.detail.firstChild, text);
    say(this.detail.lastChild, facts.join(" "));
  }
}

function idOf(item) {
  return Number(item.dataset.id);
}

/** Make `elements` the container's children in this order; what fades stays where it is. */
function place(container, elements) {
  const fixed = (at) => at && (at.classList.contains("gone") || at.classList.contains("ground-name"));
  let at = container.firstElementChild;
  for (const element of elements) {
    while (fixed(at)) at = at.nextElementSibling;
    if (element === at) at = at.nextElementSibling;
    else container.insertBefore(element, at);
  }
}
