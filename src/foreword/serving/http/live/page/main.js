// Puts the parts of the page together.

import { useKey } from "./api.js";
import { Feed } from "./feed.js";
import { say } from "./format.js";
import { Numbers } from "./numbers.js";
import { Playground } from "./playground.js";
import { Tree } from "./tree.js";

const $ = (id) => document.getElementById(id);

const numbers = new Numbers();
const tree = new Tree($("tree"), $("detail"));
const feed = new Feed(show, status);
const playground = new Playground(askForKey);

function show(state) {
  numbers.update(state);
  tree.update(state);
  playground.model = state.model;
}

function status(name, text) {
  $("connection").dataset.state = name;
  say($("connection"), text);
  if (name !== "live") numbers.gap();
  if (name === "key") askForKey();
  if (name === "closed") say($("empty-text"), "This key may use the playground, but not look at the tree.");
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  feed.restart();
});

$("pause").addEventListener("click", () => {
  const paused = $("pause").getAttribute("aria-pressed") !== "true";
  $("pause").setAttribute("aria-pressed", String(paused));
  feed.pause(paused);
});

for (const id of ["demo", "three"]) $(id).addEventListener("click", () => playground.demo());

setInterval(() => {
  if (feed.run) numbers.tick();
}, 1000);
feed.settle();
