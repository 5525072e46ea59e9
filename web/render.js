// Shows Markdown, with code blocks that can be copied. Rendering is throttled to one a frame, so that a
// fast stream costs no more than a slow one.

import { copyText } from "./clipboard.js";
import { markdownNodes } from "./markdown.js";

export function renderMarkdown(element, text) {
  element.replaceChildren(...markdownNodes(text));
}

export function decorateCode(element) {
  for (const pre of element.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    if (!code || pre.querySelector(".copy-code")) continue;
    const language = [...code.classList].find((name) => name.startsWith("language-"));
    if (language) {
      const label = document.createElement("span");
      label.className = "language";
      label.textContent = language.slice("language-".length);
      pre.prepend(label);
    }
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy-code";
    button.textContent = "Copy";
    button.addEventListener("click", () => copyText(code.textContent, button));
    pre.append(button);
  }
}

/// Calls draw() at most once a frame however often request() is called; flush() draws at once.
export function throttle(draw) {
  let frame = 0;
  const run = () => { frame = 0; draw(); };
  return {
    request() { if (!frame) frame = requestAnimationFrame(run); },
    flush() { cancelAnimationFrame(frame); run(); },
  };
}
