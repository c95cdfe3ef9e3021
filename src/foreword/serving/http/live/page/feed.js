// The server's states as they come: connects, stops while nobody looks, and tries again.

import { call, events } from "./api.js";

const SLOWEST = 15;

export class Feed {
  /** `onState` gets each state; `onStatus(name, text)` what the connection is doing. */
  constructor(onState, onStatus) {
    this.onState = onState;
    this.onStatus = onStatus;
    this.paused = false;
    this.run = null;
    document.addEventListener("visibilitychange", () => this.settle());
  }

  pause(paused) {
    this.paused = paused;
    this.settle();
  }

  /** Connect anew, for instance with another key. */
  restart() {
    this.run?.abort();
    this.run = null;
    this.settle();
  }

  settle() {
    const wanted = !this.paused && document.visibilityState === "visible";
    if (wanted && !this.run) {
      this.run = new AbortController();
      this.follow(this.run.signal);
    } else if (!wanted && this.run) {
      this.run.abort();
      this.run = null;
      this.onStatus("paused", "paused");
    }
  }

  async follow(signal) {
    let wait = 1;
    while (!signal.aborted) {
      try {
        const response = await call("live/events", { signal });
        this.onStatus("live", "live");
        for await (const data of events(response)) {
          wait = 1;
          const state = JSON.parse(data);
          this.onState(state);
          if (state.state === "draining") this.onStatus("lost", "the server is going down");
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401) return this.onStatus("key", "waiting for a key");
        if (error.status === 403) return this.onStatus("closed", "the tree is for operators only");
        if (error.status === 503) wait = Math.max(wait, Math.min(error.retryAfter, SLOWEST));
      }
      if (signal.aborted) return;
      this.onStatus("lost", "no connection, trying again");
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
      wait = Math.min(2 * wait, SLOWEST);
    }
  }
}
