// The chat page: one conversation, streamed from /v1/chat/completions. No build step, no network beyond
// the server that served it.

import { copyText } from "./clipboard.js";
import { decorateCode, renderMarkdown, throttle } from "./render.js";
import { events } from "./sse.js";
import { load, save } from "./store.js";
import { watchServer } from "./status.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const prompt = $("prompt");
const dialog = $("settings");
const fields = dialog.querySelector("form").elements;

let settings = load("settings", {});
// [{role, content, reasoning?, thinkingSeconds?, thinkingOpen?, figures?, error?}]
let conversation = load("conversation", []);
let model = "";
let running = null; // AbortController of the answer in progress

const headers = () => (settings.api_key ? { Authorization: `Bearer ${settings.api_key}` } : {});

// ---- theme ---------------------------------------------------------------------------------------

function applyTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}
applyTheme(load("theme", ""));
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = dark ? "light" : "dark";
  applyTheme(theme);
  save("theme", theme);
});

// ---- settings ------------------------------------------------------------------------------------

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
  "frequency_penalty", "max_tokens", "seed"];
const TEXTS = ["system", "stop", "api_key"];

function showSettings() {
  for (const name of [...NUMBERS, ...TEXTS]) fields[name].value = settings[name] ?? "";
}
function readSettings() {
  settings = {};
  for (const name of NUMBERS) {
    if (fields[name].value !== "" && fields[name].validity.valid) settings[name] = Number(fields[name].value);
  }
  for (const name of TEXTS) if (fields[name].value !== "") settings[name] = fields[name].value;
  save("settings", settings);
}
$("open-settings").addEventListener("click", () => { showSettings(); dialog.showModal(); });
$("reset-settings").addEventListener("click", () => {
  for (const name of [...NUMBERS, ...TEXTS]) fields[name].value = "";
});
dialog.addEventListener("close", () => { readSettings(); fetchModel(); prompt.focus(); });

function requestBody() {
  const messages = conversation.filter((m) => !m.error).map(({ role, content }) => ({ role, content }));
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) if (settings[name] !== undefined) body[name] = settings[name];
  const stops = (settings.stop ?? "").split("¦").filter((s) => s !== "");
  if (stops.length) body.stop = stops;
  return body;
}

// ---- messages ------------------------------------------------------------------------------------

function drawMessage(message, index) {
  const node = $("message-template").content.cloneNode(true).firstElementChild;
  node.classList.add(message.role);
  node.querySelector(".who").textContent = message.role === "user" ? "You" : model || "Assistant";
  const body = node.querySelector(".body");
  const thinking = node.querySelector(".thinking");
  thinking.open = message.thinkingOpen === true;
  thinking.addEventListener("toggle", () => { message.thinkingOpen = thinking.open; });
  if (message.role === "user") body.textContent = message.content;
  else updateAssistant(node, message);
  if (message.error) {
    const note = document.createElement("p");
    note.className = "error";
    note.textContent = message.error;
    body.append(note);
  }
  node.querySelector(".copy").addEventListener("click", (event) => copyText(message.content, event.target));
  const last = index === conversation.length - 1;
  const regenerate = node.querySelector(".regenerate");
  regenerate.hidden = message.role !== "assistant" || !last;
  regenerate.addEventListener("click", () => answerAgain());
  const edit = node.querySelector(".edit");
  edit.hidden = message.role !== "user";
  edit.addEventListener("click", () => editFrom(index));
  return node;
}

/// While it lasts `since` is when the thinking began; afterwards the message knows how long it took.
function updateThinking(node, message, since) {
  if (!message.reasoning) return;
  const thinking = node.querySelector(".thinking");
  thinking.hidden = false;
  const seconds = message.thinkingSeconds;
  const text = seconds === undefined ? `Thinking… ${Math.floor((performance.now() - since) / 1000)} s`
    : `Thought for ${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const summary = thinking.querySelector("summary");
  if (summary.textContent !== text) summary.textContent = text;
  // Only what is new is added, so that reading and selecting go on undisturbed.
  const thoughts = node.querySelector(".thoughts");
  const shown = thoughts.textContent.length;
  if (shown < message.reasoning.length) thoughts.append(message.reasoning.slice(shown));
}

function updateAssistant(node, message, thinkingSince = performance.now()) {
  updateThinking(node, message, thinkingSince);
  const body = node.querySelector(".body");
  renderMarkdown(body, message.content);
  node.querySelector(".figures").textContent = message.figures ?? "";
}

function draw() {
  // The messages are made anew; whoever has just opened a thought by key stays there.
  const summaries = () => [...log.querySelectorAll(".thinking summary")];
  const focused = summaries().indexOf(document.activeElement);
  $("welcome").hidden = conversation.length > 0;
  for (const node of log.querySelectorAll(".message")) node.remove();
  conversation.forEach((message, index) => {
    const node = drawMessage(message, index);
    decorateCode(node);
    log.append(node);
  });
  if (focused >= 0) summaries()[focused]?.focus({ preventScroll: true });
  log.scrollTop = log.scrollHeight;
}

const atBottom = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;

// ---- talking to the server -----------------------------------------------------------------------

async function fetchModel() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) return;
    model = (await response.json()).data[0].id;
    const short = model.split("/").pop();
    $("model").textContent = short;
    $("model").title = model;
    document.title = `${short} – Capstan`;
  } catch {
    // The live line says that the server is not reachable.
  }
}

async function errorText(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.message ?? text;
  } catch {
    return text || `HTTP ${response.status}`;
  }
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
}

function figuresOf(start, first, last, usage, fallbackTokens) {
  const tokens = usage?.completion_tokens ?? fallbackTokens;
  const parts = [`${tokens} token${tokens === 1 ? "" : "s"}`];
  if (first && last > first && tokens > 1) parts.push(`${((tokens - 1) / ((last - first) / 1000)).toFixed(1)} tok/s`);
  if (first) parts.push(`first token ${first - start < 1000 ? `${Math.round(first - start)} ms` : `${((first - start) / 1000).toFixed(1)} s`}`);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (usage) parts.push(cached ? `prompt ${usage.prompt_tokens} (${cached} cached)` : `prompt ${usage.prompt_tokens}`);
  return parts.join(" · ");
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "" };
  const body = requestBody();
  conversation.push(message);
  draw();
  const node = log.lastElementChild;
  node.classList.add("waiting");
  node.querySelector(".regenerate").hidden = true;
  const controller = new AbortController();
  setRunning(controller);

  const start = performance.now();
  let first = 0, last = 0, tokens = 0, usage = null, finish = null;
  const view = throttle(() => {
    const follow = atBottom();
    updateAssistant(node, message, first);
    if (follow) log.scrollTop = log.scrollHeight;
  });
  const thought = () => {
    if (message.reasoning && message.thinkingSeconds === undefined) message.thinkingSeconds = (last - first) / 1000;
  };
  // A model may pause between thoughts; the seconds go on.
  const clock = setInterval(() => {
    if (message.thinkingSeconds === undefined) updateThinking(node, message, first);
  }, 250);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", signal: controller.signal,
      headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify(body),
    });
    if (!response.ok) throw new Error(await errorText(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices[0];
      if (!choice) continue;
      finish = choice.finish_reason ?? finish;
      const { content, reasoning_content: reasoning } = choice.delta;
      if (!content && !reasoning) continue;
      last = performance.now();
      first ||= last;
      tokens += 1;
      if (reasoning) message.reasoning += reasoning;
      if (content) {
        thought();
        message.content += content;
      }
      node.classList.replace("waiting", "streaming");
      message.figures = figuresOf(start, first, last, null, tokens);
      view.request();
    }
    message.figures = figuresOf(start, first, last, usage, tokens);
    if (finish === "length") message.figures += " · cut at the token limit";
    if (finish === "abort") message.error = "The server ended this answer.";
  } catch (error) {
    if (error.name === "AbortError") message.figures = `${figuresOf(start, first, last, null, tokens)} · stopped`;
    else message.error = error instanceof TypeError ? `Connection lost: ${error.message}` : error.message;
  } finally {
    clearInterval(clock);
    thought();
    setRunning(null);
    view.flush();
    save("conversation", conversation);
    draw();
    pollStatus();
  }
}

function say(text) {
  if (running || text.trim() === "") return;
  conversation = conversation.filter((m) => !(m.error && m.content === ""));
  conversation.push({ role: "user", content: text });
  prompt.value = "";
  resizePrompt();
  answer();
}

function answerAgain() {
  if (running) return;
  while (conversation.length && conversation.at(-1).role === "assistant") conversation.pop();
  if (conversation.length) answer();
}

function editFrom(index) {
  if (running) return;
  prompt.value = conversation[index].content;
  conversation = conversation.slice(0, index);
  save("conversation", conversation);
  draw();
  resizePrompt();
  prompt.focus();
}

function newChat() {
  running?.abort();
  conversation = [];
  save("conversation", conversation);
  draw();
  prompt.focus();
}

// ---- input ---------------------------------------------------------------------------------------

function resizePrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}
prompt.addEventListener("input", resizePrompt);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    say(prompt.value);
  }
});
$("composer").addEventListener("submit", (event) => { event.preventDefault(); say(prompt.value); });
$("stop").addEventListener("click", () => { running?.abort(); prompt.focus(); });
$("new-chat").addEventListener("click", newChat);
for (const button of document.querySelectorAll("#suggestions button")) {
  button.addEventListener("click", () => say(button.textContent));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !dialog.open) running.abort();
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key === ",") { event.preventDefault(); $("open-settings").click(); }
  if (control && event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); newChat(); }
});
window.addEventListener("beforeunload", () => running?.abort());

draw();
fetchModel();
const pollStatus = watchServer($("live"), headers);
