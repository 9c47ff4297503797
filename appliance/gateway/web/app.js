// The chat page. All text reaches the document as text nodes, never as markup.

import { Failure, chat, keepKey, models, passage } from "./api.js";
import { words } from "./words.js";

const HISTORY_TURNS = 20;
const $ = (id) => document.getElementById(id);
const state = { lang: "en", models: [], history: [], abort: null, opener: null, redraw: null };

const t = () => words[state.lang];
const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const armName = (arm) => t().arms[arm] ?? arm;

function node(tag, properties = {}, ...children) {
  const { label, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  if (label) made.setAttribute("aria-label", label);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

// --- language and selectors

function setLanguage(lang) {
  state.lang = lang;
  document.documentElement.lang = lang === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t()[element.dataset.text];
  $("question").placeholder = t().placeholder;
  $("panel-close").setAttribute("aria-label", t().close);
  $("language").textContent = t().other;
  $("language").setAttribute("aria-label", t().otherLabel);
  $("language").lang = lang === "zh" ? "en" : "zh-CN";
  fillDomains();
  state.redraw?.();
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => node("option", { value, textContent: text })));
  if (options.some(([value]) => value === before)) select.value = before;
}

function fillDomains() {
  const domains = state.models.filter((id) => id !== "auto" && !id.includes("/"));
  fill($("domain"), [["", t().allDomains], ...domains.map((name) => [name, name])]);
  fillArms();
}

function fillArms() {
  const prefix = $("domain").value ? `${$("domain").value}/` : "";
  const arms = state.models.filter((id) => id.includes("/") && id.startsWith(prefix)).map((id) => id.split("/").pop());
  fill($("arm"), [["auto", t().auto], ...[...new Set(arms)].map((arm) => [arm, armName(arm)])]);
}

async function loadModels() {
  await withKey(async () => {
    state.models = await models();
  });
  fillDomains();
}

// Runs a call; whenever the server wants a key, asks for one and runs it again.
async function withKey(call) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForKey(tries > 0);
    }
  }
}

function askForKey(wrong) {
  $("key-error").hidden = !wrong;
  $("key-error").textContent = t().keyWrong;
  $("key").value = "";
  return new Promise((resolve) => {
    $("key-form").onsubmit = () => {
      keepKey($("key").value.trim());
      resolve();
    };
    $("key-dialog").showModal();
  });
}

// --- one question and its answer

async function ask(question) {
  const domain = $("domain").value || null;
  const appliance = { arm: $("arm").value, must_cite: $("must-cite").checked, ...(domain ? { domain } : {}) };
  const messages = [...state.history.slice(-HISTORY_TURNS), { role: "user", content: question }];
  $("welcome").hidden = true;
  const text = node("div", { className: "text" });
  const thinking = node("p", { className: "thinking", textContent: t().thinking });
  const card = node("article", { className: "turn answer", label: t().answer }, thinking, text);
  $("log").append(node("article", { className: "turn you", label: t().you }, node("div", { className: "text", textContent: question })), card);
  card.scrollIntoView({ block: "end" });
  state.abort = new AbortController();
  busy(true);
  let answer = null;
  try {
    await withKey(async () => {
      for await (const chunk of chat({ model: "auto", messages, appliance }, state.abort.signal)) {
        const piece = chunk.choices[0]?.delta?.content;
        if (piece) {
          thinking.remove();
          following(() => text.append(piece));
        }
        if (chunk.appliance) answer = chunk.appliance;
      }
    });
  } catch (error) {
    following(() => card.append(problem(error)));
  }
  thinking.remove();
  busy(false);
  if (!answer) return;
  state.history = [...messages, { role: "assistant", content: answer.answer }];
  following(() => card.replaceChildren(...answered(answer)));
  $("status").textContent = t().done;
}

function problem(error) {
  if (error.name === "AbortError") return node("p", { className: "muted", textContent: t().stopped });
  const known = error instanceof Failure;
  const message = known && error.message === "cut" ? t().cut : known ? error.message : t().unreachable;
  if (!known) console.error(error);
  const shown = node("p", { className: "error", textContent: t().failed + message });
  shown.setAttribute("role", "alert");
  return shown;
}

// Changes the log and, if its end was in view, keeps it in view.
function following(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("log").setAttribute("aria-busy", on);
  if (on) $("status").textContent = t().thinking;
  else $("question").focus();
}

// The finished answer: its text with numbered chips where a citation ends, its sources, and how it came about.
function answered(answer) {
  const sources = numbered(answer.citations);
  const unsupported = answer.unsupported.length
    ? [node("details", { className: "unsupported" }, node("summary", { textContent: `${t().unsupported} (${answer.unsupported.length})` }),
        node("ul", {}, ...answer.unsupported.map((sentence) => node("li", { textContent: sentence }))))]
    : [];
  const warnings = answer.warnings.map((sentence) => node("p", { className: "error", textContent: sentence }));
  const why = node("button", { type: "button", className: "quiet", textContent: t().why });
  why.onclick = () => openPanel(why, () => [t().why, routePanel(answer)]);
  const facts = [answer.domain, seconds(answer.timings_ms.total ?? 0)].filter(Boolean).join(" · ");
  return [
    textWithChips(answer, sources),
    ...(sources.length ? [node("ol", { className: "sources", label: t().sources }, ...sources.map(sourceRow))] : []),
    ...unsupported,
    ...warnings,
    node("footer", {}, node("span", { className: `badge ${answer.arm}`, textContent: armName(answer.arm) }),
      node("span", { className: "muted", textContent: facts }), why),
  ];
}

// One number for each passage, however often it is cited.
function numbered(citations) {
  const sources = new Map();
  for (const citation of [...citations].sort((a, b) => a.answer_end - b.answer_end)) {
    const key = JSON.stringify([citation.domain, citation.doc_id, citation.start, citation.end]);
    if (!sources.has(key)) sources.set(key, { number: sources.size + 1, citation, ends: new Set() });
    sources.get(key).ends.add(citation.answer_end);
  }
  return [...sources.values()];
}

function textWithChips(answer, sources) {
  // Offsets count code points, which are the elements of this array.
  const points = Array.from(answer.answer);
  const ends = [...new Set(sources.flatMap((source) => [...source.ends]))].sort((a, b) => a - b);
  const text = node("div", { className: "text" });
  let at = 0;
  for (const end of ends) {
    text.append(points.slice(at, end).join(""), ...sources.filter((source) => source.ends.has(end)).map(chip));
    at = end;
  }
  text.append(points.slice(at).join(""));
  return text;
}

function chip(source) {
  const label = `${t().source} ${source.number}: ${source.citation.title}`;
  const button = node("button", { type: "button", className: "chip", textContent: source.number, label, title: source.citation.title });
  button.onclick = () => openPassage(button, source);
  return button;
}

function sourceRow(source) {
  const { citation } = source;
  const page = citation.page === null ? null : t().page.replace("#", citation.page);
  const place = [citation.title, citation.heading.at(-1), page].filter(Boolean).join(" · ");
  const button = node("button", { type: "button", className: "source" },
    node("span", { className: "chip", textContent: source.number }), node("span", { textContent: place }),
    node("span", { className: "muted snippet", textContent: citation.quote }));
  button.onclick = () => openPassage(button, source);
  return node("li", {}, button);
}

// --- the side panel

function openPanel(opener, draw) {
  state.opener = opener;
  state.redraw = () => {
    const [title, content] = draw();
    $("panel-title").textContent = title;
    $("panel-body").replaceChildren(content);
  };
  state.redraw();
  $("panel").hidden = false;
  $("panel").scrollTop = 0;
  $("panel-title").focus();
}

function closePanel() {
  if ($("panel").hidden) return;
  $("panel").hidden = true;
  state.redraw = null;
  if (state.opener?.isConnected) state.opener.focus();
  else $("question").focus();
}

async function openPassage(opener, source) {
  const body = node("div", {}, node("p", { className: "muted", textContent: t().loading }));
  openPanel(opener, () => [`${t().source} ${source.number}`, body]);
  try {
    const found = await withKey(() => passage(source.citation));
    const mark = node("mark", { textContent: found.quote });
    body.replaceChildren(
      node("h3", { textContent: found.title }),
      node("p", { className: "muted path", textContent: found.uri }),
      node("blockquote", { className: "passage" }, found.before, mark, found.after));
    mark.scrollIntoView({ block: "center" });
  } catch (error) {
    body.replaceChildren(problem(error));
  }
}

function section(title, ...content) {
  return node("section", {}, node("h3", { textContent: title }), ...content);
}

function table(head, rows) {
  const line = (tag, cells) => node("tr", {}, ...cells.map((cell) => node(tag, {}, cell)));
  return node("table", {}, ...(head ? [node("thead", {}, line("th", head))] : []), node("tbody", {}, ...rows.map((row) => line("td", row))));
}

function routePanel(answer) {
  const { decision } = answer;
  const predicted = Object.entries(decision.predicted).sort(([, a], [, b]) => b.quality - a.quality);
  const qualityCell = (value) => node("span", { className: "quality" },
    node("meter", { min: 0, max: 1, value, label: t().quality }), value.toFixed(2));
  const facts = [
    [t().rule, decision.rule], [t().query, answer.query], [t().engine, answer.engine], [t().adapter, answer.adapter],
    [t().generation, answer.generation], [t().router, decision.router_version],
  ].filter(([, value]) => value !== null && value !== "");
  const unavailable = Object.entries(decision.unavailable);
  const features = Object.entries(decision.features).sort(([a], [b]) => a.localeCompare(b));
  const stages = Object.entries(answer.timings_ms);
  return node("div", {},
    node("p", {}, node("span", { className: `badge ${answer.arm}`, textContent: armName(answer.arm) }), " ",
      node("span", { className: "muted", textContent: decision.domain })),
    section(t().reasons, node("ul", {}, ...decision.reasons.map((reason) => node("li", { textContent: reason })))),
    ...(predicted.length ? [section(t().predicted, table(["", t().quality, t().latency, t().tokens], predicted.map(([arm, expected]) => [
      node(arm === decision.arm ? "strong" : "span", { textContent: armName(arm) }), qualityCell(expected.quality),
      seconds(expected.latency_ms), String(Math.round(expected.tokens))])))] : []),
    ...(unavailable.length ? [section(t().unavailable, node("dl", {}, ...unavailable.flatMap(([arm, reason]) => [
      node("dt", { textContent: armName(arm) }), node("dd", { textContent: reason })])))] : []),
    ...(stages.length ? [section(t().timings, table(null, stages.map(([stage, ms]) => [t().stages[stage] ?? stage, seconds(ms)])))] : []),
    ...(features.length ? [node("details", {}, node("summary", { textContent: t().features }),
      table(null, features.map(([name, value]) => [node("code", { textContent: name }), String(Number(value.toFixed(4)))])))] : []),
    node("details", {}, node("summary", { textContent: t().details }), table(null, facts.map(([name, value]) => [name, String(value)]))));
}

// --- wiring

function submit() {
  const question = $("question").value.trim();
  if (!question || $("send").hidden) return;
  $("question").value = "";
  ask(question);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("question").addEventListener("keydown", (event) => {
  // Enter that confirms a Chinese input method's choice must not send.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
$("stop").addEventListener("click", () => state.abort?.abort());
$("domain").addEventListener("change", fillArms);
$("language").addEventListener("click", () => {
  const lang = state.lang === "en" ? "zh" : "en";
  localStorage.setItem("appliance-language", lang);
  setLanguage(lang);
});
$("new-chat").addEventListener("click", () => {
  state.abort?.abort();
  state.history = [];
  closePanel();
  $("log").replaceChildren($("welcome"));
  $("welcome").hidden = false;
  $("question").focus();
});
$("panel-close").addEventListener("click", closePanel);
$("key-dialog").addEventListener("cancel", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("key-dialog").open) closePanel();
});

setLanguage(localStorage.getItem("appliance-language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
$("question").focus();
loadModels().catch((error) => $("log").append(problem(error)));
