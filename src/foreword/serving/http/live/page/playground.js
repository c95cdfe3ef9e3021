// The playground: sends to the public API, as any client would, and shows answers as they come.

import { call, events, post } from "./api.js";
import { count, make, plural, say } from "./format.js";

const BEGINNING =
  "In a small house by the sea there lived an old captain with his three daughters. Every evening, " +
  "when the lamp was lit and the wind went round the chimney, he told them of the ships he had " +
  "sailed in, of the islands he had seen, and of the friends he had lost. One night in winter, " +
  "when the snow lay deep and the road was empty, somebody knocked at the door.";
const GOES_ON = ["The eldest daughter rose and said,", "The captain took the lamp, and", "But the youngest only laughed, for"];
const RULES = "You are the keeper of a small library by the sea. Answer in one short sentence, in plain words, and stay friendly even when a question is strange.";
const QUESTIONS = ["Which book shall I read tonight?", "When does the library close?", "Is there a book about whales?"];

const TEXTS = {
  text: { beginning: BEGINNING, questions: GOES_ON, labels: ["Beginning, the same every time", "How it goes on"] },
  chat: { beginning: RULES, questions: QUESTIONS, labels: ["Instructions, the same every time", "Question"] },
};
const $ = (id) => document.getElementById(id);

export class Playground {
  /** `onKey` is called when the server wants a key. */
  constructor(onKey) {
    this.onKey = onKey;
    this.model = null;
    this.running = null;
    this.mode = "text";
    this.fill();
    $("play").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.running) this.send([$("question").value], Number($("answers").value));
    });
    $("play").addEventListener("change", (event) => {
      if (event.target.name === "mode") this.choose(event.target.value);
    });
    $("stop").addEventListener("click", () => this.running?.abort());
  }

  fill() {
    const texts = TEXTS[this.mode];
    $("beginning").value = texts.beginning;
    $("question").value = texts.questions[0];
    say($("beginning-label"), texts.labels[0]);
    say($("question-label"), texts.labels[1]);
  }

  /** Change between text and chat; what was typed stays, what was only an example is exchanged. */
  choose(mode) {
    const before = TEXTS[this.mode];
    const typed = [$("beginning").value, $("question").value];
    const example = typed[0] === before.beginning && typed[1] === before.questions[0];
    this.mode = mode;
    this.fill();
    if (!example) [$("beginning").value, $("question").value] = typed;
  }

  demo() {
    if (!this.running) this.send(TEXTS[this.mode].questions, 1);
  }

  /** Send one request per question, all at once, and show their answers. */
  async send(questions, answers) {
    const stop = new AbortController();
    this.running = stop;
    this.lock(true);
    $("output").hidden = false;
    $("output").replaceChildren();
    say($("play-status"), "Sent.");
    const began = performance.now();
    const total = { prompt: 0, found: 0, written: 0 };
    const sent = questions.map((question) => {
      const places = Array.from({ length: answers }, () => this.place(question));
      return this.ask(question, places, stop.signal, total);
    });
    const failed = (await Promise.allSettled(sent)).find((one) => one.status === "rejected");
    this.running = null;
    this.lock(false);
    if (stop.signal.aborted) return say($("play-status"), "Stopped.");
    if (failed) {
      if (failed.reason.status === 401) this.onKey();
      return say($("play-status"), `That did not work: ${failed.reason.message}`);
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    say(
      $("play-status"),
      `${plural(total.written, "token")} in ${seconds} s. Of ${plural(total.prompt, "prompt token")} ` +
        `${count(total.found)} were there already, ${count(total.prompt - total.found)} were computed.`,
    );
  }

  lock(running) {
    const focus = document.activeElement;
    for (const id of ["send", "three", "demo"]) $(id).disabled = running;
    $("stop").disabled = !running;
    // A button that is switched off loses the focus: hand it on to the one that is left.
    if (running && ["send", "three", "demo"].includes(focus.id)) $("stop").focus();
    if (!running && focus.id === "stop") $("send").focus();
  }

  place(question) {
    const text = make("span", "written");
    $("output").append(make("p", "answer", make("span", "quiet", `${question} `), text));
    return text;
  }

  async ask(question, places, signal, total) {
    const model = this.model ?? (this.model = await this.firstModel(signal));
    const path = this.mode === "chat" ? "v1/chat/completions" : "v1/completions";
    const response = await post(path, this.body(model, question, places.length), signal);
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      for (const choice of chunk.choices) {
        places[choice.index].append(choice.text ?? choice.delta?.content ?? "");
      }
      if (chunk.usage) {
        total.prompt += chunk.usage.prompt_tokens;
        total.found += chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
        total.written += chunk.usage.completion_tokens;
      }
    }
  }

  body(model, question, answers) {
    const beginning = $("beginning").value;
    const common = {
      model,
      n: answers,
      temperature: Number($("temperature").value),
      stream: true,
      stream_options: { include_usage: true },
    };
    const most = Number($("tokens").value);
    if (this.mode === "text") {
      const seam = !beginning || !question || /\s$/.test(beginning) || /^\s/.test(question) ? "" : " ";
      return { ...common, max_tokens: most, prompt: beginning + seam + question };
    }
    const messages = [{ role: "user", content: question }];
    if (beginning) messages.unshift({ role: "system", content: beginning });
    return { ...common, max_completion_tokens: most, messages };
  }

  async firstModel(signal) {
    const response = await call("v1/models", { signal });
    return (await response.json()).data[0].id;
  }
}
