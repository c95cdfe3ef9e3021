// Numbers and texts for people, and a short way to make elements.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

export const count = (value) => whole.format(value);

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (value >= 999.5 && step < units.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${(step ? fine : whole).format(value)} ${units[step]}`;
}

/** On one line: line ends become an arrow, other control characters a dot. */
export function oneLine(text) {
  return text.replace(/\r?\n/g, "↵ ").replace(/[\u0000-\u001f\u007f-\u009f]/g, "·");
}

/** An element with a class and children; strings become text, never markup. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Set an element's text if it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
