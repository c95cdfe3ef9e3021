// Everything that is a number: shared against computed, now and lately; who runs; the cache.

import { bytes, count, make, plural, say } from "./format.js";

const SLICE = 3; // seconds in one step of the curve
const SLICES = 100;
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
    const step = 300 / SLICES;
    const from = 300 - this.slices.length * step;
    const area = (low, high) => {
      const there = this.slices.map((s, i) => steps(from + i * step, step, high(s) / top));
      const back = this.slices.map((s, i) => steps(from + (i + 1) * step, -step, low(s) / top));
      return `M${there.join("L")}L${back.reverse().join("L")}Z`;
    };
    workPath.setAttribute("d", area(() => 0, (slice) => slice.work));
    sharedPath.setAttribute("d", area((slice) => slice.work, (slice) => slice.work + slice.shared));
    const sum = (name) => this.slices.reduce((total, slice) => total + slice[name], 0);
    say(
      $("spark-text"),
      `The last five minutes: ${count(sum("shared"))} tokens were there already, ` +
        `${count(sum("work"))} were computed; at most ${count(top / SLICE)} a second.`,
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

/** Two points of a curve of steps, at the height of a share of 1. */
function steps(x, width, share) {
  const y = (43 - 42 * share).toFixed(1);
  return `${x.toFixed(1)} ${y}L${(x + width).toFixed(1)} ${y}`;
}
