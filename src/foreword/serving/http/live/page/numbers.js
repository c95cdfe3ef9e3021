// Everything that is a number: shared against computed, now and lately; who runs; the cache.

import { bytes, count, make, plural, say } from "./format.js";

const SLICE = 3; // seconds that one bar stands for
const SLICES = 60;
const $ = (id) => document.getElementById(id);

export class Numbers {
  constructor() {
    this.last = null;
    this.slices = [{ shared: 0, work: 0 }];
    this.started = performance.now();
  }

  update(state) {
    const computed = state.prompt_tokens - state.shared_tokens;
    say($("model"), state.model);
    say($("asked"), count(state.prompt_tokens));
    say($("found"), count(state.shared_tokens));
    say($("computed"), count(computed));
    const percent = state.prompt_tokens ? (100 * state.shared_tokens) / state.prompt_tokens : 0;
    const [shared, work] = $("share-bar").children;
    shared.style.flexGrow = state.shared_tokens;
    work.style.flexGrow = computed;
    $("share-bar").setAttribute(
      "aria-label",
      state.prompt_tokens
        ? `${Math.round(percent)} percent of the prompt tokens were there already`
        : "Nothing was asked yet",
    );
    this.note(state.shared_tokens, computed);
    this.line(state);
    this.cache(state.cache);
  }

  /** Books what came since the last state to the slice of now. */
  note(shared, work) {
    const slice = this.slices[this.slices.length - 1];
    if (this.last && shared >= this.last.shared && work >= this.last.work) {
      slice.shared += shared - this.last.shared;
      slice.work += work - this.last.work;
    }
    this.last = { shared, work }; // smaller ones: the server began anew
    this.draw();
  }

  /** What comes next was not watched: it belongs to no bar. */
  gap() {
    this.last = null;
  }

  /** To be called every second: the curve moves on also when nothing happens. */
  tick() {
    const due = Math.floor((performance.now() - this.started) / (SLICE * 1000));
    if (due < 1) return;
    this.started += due * SLICE * 1000;
    for (let i = 0; i < Math.min(due, SLICES); i += 1) this.slices.push({ shared: 0, work: 0 });
    this.slices = this.slices.slice(-SLICES);
    this.draw();
  }

  draw() {
    const [sharedPath, workPath] = $("spark").children;
    const top = Math.max(1, ...this.slices.map((slice) => slice.shared + slice.work));
    const from = SLICES - this.slices.length;
    const bar = (place, low, high) => {
      if (high <= low) return "";
      const [bottom, height] = [44 - (42 * low) / top, (42 * (high - low)) / top];
      return `M${(from + place) * 5} ${bottom.toFixed(1)}v-${height.toFixed(1)}h4v${height.toFixed(1)}z`;
    };
    const bars = (edges) => this.slices.map((slice, i) => bar(i, ...edges(slice))).join("");
    workPath.setAttribute("d", bars((slice) => [0, slice.work]));
    sharedPath.setAttribute("d", bars((slice) => [slice.work, slice.work + slice.shared]));
    const sum = (name) => this.slices.reduce((total, slice) => total + slice[name], 0);
    say(
      $("spark-text"),
      `The last three minutes: ${count(sum("shared"))} tokens were there already, ` +
        `${count(sum("work"))} were computed.`,
    );
  }

  line(state) {
    const rows = state.tenants.map((entry) => {
      const named = entry.name === null ? `${count(entry.tenants)} others` : entry.name || "everybody";
      return make(
        "tr",
        "",
        make("td", "name", named),
        make("td", "", count(entry.running)),
        make("td", "", count(entry.waiting)),
      );
    });
    $("line").tBodies[0].replaceChildren(...rows);
    $("line").hidden = rows.length === 0;
    $("line-none").hidden = rows.length > 0;
    say(
      $("line-sums"),
      `${plural(state.requests, "request")} since the start, ` +
        `${plural(state.generated_tokens, "token")} written.`,
    );
  }

  cache(cache) {
    const free = cache.bytes - cache.in_use - cache.kept;
    const [used, kept] = $("cache-bar").children;
    used.style.width = `${(100 * cache.in_use) / cache.bytes}%`;
    kept.style.width = `${(100 * cache.kept) / cache.bytes}%`;
    say($("cache-used"), bytes(cache.in_use));
    say($("cache-kept"), bytes(cache.kept));
    say($("cache-free"), bytes(free));
    $("cache-bar").setAttribute(
      "aria-label",
      `${bytes(cache.in_use)} in use, ${bytes(cache.kept)} kept for later, ${bytes(free)} free`,
    );
  }
}
