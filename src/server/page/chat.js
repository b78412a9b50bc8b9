/* The chat page: conversations live in this browser, answers stream from /v1/chat/completions. Text of the
 * model is only ever put into the page as text: markdown.js makes elements of it, never markup. */
"use strict";

const $ = id => document.getElementById(id);

/* ------------------------------------------------------------------ what is kept */

const KEEP = "dsv4.chats", SETTINGS = "dsv4.settings";
const load = (key, otherwise) => {
  try { return JSON.parse(localStorage.getItem(key)) || otherwise; } catch { return otherwise; }
};
let chats = load(KEEP, []);
let settings = Object.assign({
  system: "", effort: "none", budget: 0, temperature: 1, topP: 1, topK: 0, minP: 0, maxTokens: 0, seed: "",
  fileTokens: 0, key: "", theme: "auto",
}, load(SETTINGS, {}));
let current = chats[0] || null, running = null, attached = [], contextLength = 0;

const save = () => {
  for (;;) {
    try { localStorage.setItem(KEEP, JSON.stringify(chats)); return; } catch {
      if (chats.length < 2) { say("This browser has no room to keep the conversation.", true); return; }
      chats.pop();  /* the oldest makes room */
    }
  }
};

/* What goes on. `rate` changes with every token and is not read out by screen readers. */
const say = (text, bad, rate) => {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").classList.toggle("error", !!bad);
  $("rate").textContent = rate || "";
};

/* ------------------------------------------------------------------ showing */

/* Reasoning that somebody has unfolded stays so when the page is drawn again. */
const unfolded = new WeakSet();

function showMessage(m, at) {
  const box = make("article", undefined, "message " + m.role), text = make("div", undefined, "text");
  box.append(make("div", m.role === "user" ? "You" : "Model", "who"));
  if (m.reasoning || m.reasoningTokens) {
    const d = make("details", undefined, "reasoning"), s = make("summary"), t = make("div", m.reasoning, "thought");
    d.append(s, t);
    d.open = unfolded.has(m);
    d.addEventListener("toggle", () => { if (d.open) unfolded.add(m); else unfolded.delete(m); });
    box.append(d);
  }
  if (m.role !== "user") markdown(text, m.content);
  else text.textContent = m.text === undefined ? m.content : m.text;
  if (m.files && m.files.length) box.append(showAttached(m.files));
  if (text.textContent || m.role !== "user") box.append(text);
  if (m.error) box.append(make("p", m.error, "error"));
  const tools = make("div", undefined, "tools");
  if (m.role === "user") {
    tools.append(button("Edit", "Edit this message and ask again", () => edit(at)));
  } else {
    tools.append(copier("Copy the answer", () => m.content),
                 button("Regenerate", "Ask for another answer", () => regenerate(at)));
    tools.append(make("span", m.stats || ""));
  }
  box.append(tools);
  summary(box, m);
  return box;
}

function showAttached(files) {
  const d = make("details", undefined, "attached"), ul = make("ul");
  const n = files.reduce((sum, f) => sum + f.tokens, 0);
  d.append(make("summary", (files.length === 1 ? "1 file" : files.length + " files") + " (" + n + " tokens)"), ul);
  for (const f of files) ul.append(make("li", f.path + " (" + f.tokens + ")"));
  return d;
}

function summary(box, m) {
  const s = box.querySelector(".reasoning summary");
  if (!s) return;
  const seconds = m.reasoningSeconds === undefined ? "" : m.reasoningSeconds.toFixed(1) + " s, ";
  s.textContent = "Reasoning (" + seconds + (m.reasoningTokens || 0) + " tokens)";
}

/* Whether the end of the conversation is in sight: then it stays there when something is added. */
const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 60;

/* stay: where the reader is. */
function show(stay) {
  const log = $("log"), top = log.scrollTop, low = atEnd();
  log.replaceChildren(...(current ? current.messages.map(showMessage) : []));
  $("title").textContent = current ? current.title : "dsv4";
  log.scrollTop = stay && !low ? top : log.scrollHeight;
  $("list").replaceChildren(...chats.map(c => {
    const li = make("li", undefined, c === current ? "current" : "");
    const b = button(c.title, "Open: " + c.title, () => { stop(); current = c; show(); narrow(); $("input").focus(); });
    b.className = "open";
    if (c === current) b.setAttribute("aria-current", "true");
    li.append(b, button("×", "Delete: " + c.title, () => {
      if (!confirm("Delete this conversation?")) return;
      stop();
      chats = chats.filter(x => x !== c);
      if (current === c) current = chats[0] || null;
      save();
      show();
    }));
    return li;
  }));
}

/* ------------------------------------------------------------------ asking */

function headers() {
  const h = {"Content-Type": "application/json"};
  if (settings.key) h.Authorization = "Bearer " + settings.key;
  return h;
}

function body(messages) {
  const b = {
    messages: messages.map(m => ({role: m.role, content: m.content})), stream: true, return_progress: true,
    stream_options: {include_usage: true, continuous_usage_stats: true}, temperature: settings.temperature, top_p: settings.topP,
    top_k: settings.topK, min_p: settings.minP,
  };
  if (settings.system) b.messages.unshift({role: "system", content: settings.system});
  if (settings.effort === "none") b.thinking = {type: "disabled"};
  else {
    b.thinking = {type: "enabled"};
    b.reasoning_effort = settings.effort;
    if (settings.budget > 0) b.thinking.budget_tokens = settings.budget;
  }
  if (settings.maxTokens > 0) b.max_tokens = settings.maxTokens;
  if (settings.seed !== "") b.seed = Number(settings.seed);
  return b;
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const b of blocks)
      for (const line of b.split("\n"))
        if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

async function answer() {
  const chat = current, control = new AbortController();
  const m = {role: "assistant", content: "", reasoning: ""};
  const begun = performance.now();
  let first = 0, before = 0, tokens = 0, drawn = 0, box = null, timer = 0;
  chat.messages.push(m);
  running = {control, chat};
  $("send").hidden = true;
  $("stop").hidden = false;
  $("log").setAttribute("aria-busy", "true");
  say("waiting");
  const draw = () => {
    timer = 0;
    drawn = performance.now();
    if (current !== chat) return;
    const log = $("log"), low = atEnd(), focused = box && box.contains(document.activeElement);
    const fresh = showMessage(m, chat.messages.length - 1);
    fresh.querySelector(".text").classList.add("busy");
    if (box && box.isConnected) box.replaceWith(fresh); else log.append(fresh);
    box = fresh;
    if (focused && box.querySelector(".reasoning")) box.querySelector(".reasoning summary").focus();
    if (low) log.scrollTop = log.scrollHeight;
  };
  const soon = () => { if (!timer) timer = setTimeout(draw, Math.max(0, 60 - (performance.now() - drawn))); };
  draw();
  try {
    const r = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body(chat.messages.slice(0, -1))),
      signal: control.signal,
    });
    if (!r.ok) throw new Error((await r.json()).error.message);
    for await (const e of eventsOf(r)) {
      if (e.error) throw new Error(e.error.message);
      if (e.prompt_progress) {
        const p = e.prompt_progress;
        say("reading", false, p.processed + " of " + p.total + " tokens" +
            (p.eta_seconds ? ", " + p.eta_seconds.toFixed(0) + " s left" : ""));
        continue;
      }
      if (e.usage && !e.choices.length) {
        const u = e.usage;
        m.reasoningTokens = u.completion_tokens_details.reasoning_tokens;
        const s = e.timings.generated_seconds;
        m.stats = u.prompt_tokens + " + " + u.completion_tokens + " tokens" +
          (u.prompt_tokens_details.cached_tokens ? " (" + u.prompt_tokens_details.cached_tokens + " cached)" : "") +
          (s > 0 ? ", " + (u.completion_tokens / s).toFixed(1) + " tokens/s" : "");
      }
      const c = e.choices[0];
      if (!c) continue;
      const d = c.delta;
      if (d.reasoning_content || d.content) {
        tokens = e.usage.completion_tokens;  /* a piece may be of several */
        if (!first) { first = performance.now(); before = tokens; }
        if (d.reasoning_content) {
          m.reasoning += d.reasoning_content;
          m.reasoningTokens = e.usage.completion_tokens_details.reasoning_tokens;
          m.reasoningSeconds = (performance.now() - begun) / 1000;
        } else m.content += d.content;
        const s = (performance.now() - first) / 1000;
        say(d.content ? "answering" : "thinking", false,
            tokens + " tokens" + (s > 0.5 ? ", " + ((tokens - before) / s).toFixed(1) + " tokens/s" : ""));
        soon();
      }
      if (c.finish_reason === "length") m.error = "The answer was cut at a limit.";
    }
    say("");
  } catch (e) {
    if (e.name === "AbortError") m.error = "Stopped.";
    else { m.error = e.message || "The connection was lost."; say("failed", true); }
    if (e.name === "AbortError") say("stopped");
  }
  clearTimeout(timer);
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  $("log").removeAttribute("aria-busy");
  save();
  show(true);
}

function stop() {
  if (running) running.control.abort();
}

function edit(at) {
  if (running) return;
  const m = current.messages[at];
  $("input").value = m.text === undefined ? m.content : m.text;
  attached = [];
  let from = 0;
  for (const f of m.files || []) {  /* they are in the message */
    const e = Repo.entry({size: f.length, name: f.path}, f.path);
    attached.push(Object.assign(e, {root: f.root, tokens: f.tokens, prompt: m.content.slice(from, from += f.length)}));
  }
  current.messages.length = at;
  show();
  showFiles();
  $("input").focus();
  count();
}

function regenerate(at) {
  if (running) return;
  current.messages.length = at;
  show();
  answer();
}

/* ------------------------------------------------------------------ files */

/* attached: entries of Repo with `root`, the folder's name ("" for single files), in the order of the prompt. Sending
 * waits for `ready`. */
let round = 0, ready = Promise.resolve(true);

const budget = () => settings.fileTokens || contextLength - Math.floor(contextLength / 4);

async function attach(list, folder) {
  say("reading files");
  try {
    const files = [...list].map(file => ({file, path: file.webkitRelativePath.replace(/^[^/]*\//, "") || file.name}));
    const root = folder && list[0] ? list[0].webkitRelativePath.split("/")[0] : "";
    const found = folder ? (await Repo.list(files)).entries : files.map(f => Repo.entry(f.file, f.path));
    const names = new Set(found.map(e => e.path));
    for (const e of found) e.root = root;
    attached = Repo.sort([...attached.filter(a => a.root !== root || (!folder && !names.has(a.path))), ...found]);
    say("");
  } catch (e) { say("The folder cannot be read: " + e.message, true); return; }
  chooseAgain();
}

function chooseAgain() {
  const mine = ++round;
  ready = Repo.choose(attached, budget(), tokens, () => mine !== round).then(() => {
    if (mine !== round) return false;
    showFiles();
    count();
    return true;
  }).catch(e => {
    say("The tokens of the files cannot be counted: " + e.message, true);
    return false;
  });
}

function showFiles() {
  const SHOWN = 100, NAMED = 3, inside = Repo.inside(attached), out = new Map(), lines = [];
  for (const a of inside.slice(0, SHOWN)) {
    const li = make("li", a.path + " (" + a.tokens + ") ");
    li.append(button("×", "Remove " + a.path, () => {
      attached = attached.filter(x => x !== a);
      chooseAgain();
    }));
    lines.push(li);
  }
  if (inside.length > SHOWN)
    lines.push(make("li", (inside.length - SHOWN) + " more (" +
                    inside.slice(SHOWN).reduce((n, a) => n + a.tokens, 0) + ")"));
  for (const a of attached) if (a.why) {
    if (!out.has(a.why)) out.set(a.why, []);
    out.get(a.why).push(a.path);
  }
  for (const [why, names] of out)
    lines.push(make("li", "left out, " + why + ": " + names.slice(0, NAMED).join(", ") +
                    (names.length > NAMED ? " and " + (names.length - NAMED) + " more" : ""), "out"));
  if (attached.length) {
    const li = make("li");
    li.append(button("Remove all", "Remove all files", () => { attached = []; chooseAgain(); }));
    lines.push(li);
  }
  $("files").replaceChildren(...lines);
}

async function tokens(text) {
  const r = await fetch("/tokenize", {method: "POST", headers: headers(), body: JSON.stringify({content: text})});
  const v = await r.json();
  if (!r.ok) throw new Error(v.error.message);
  return v.count;
}

let counting = 0;
function count() {
  clearTimeout(counting);
  counting = setTimeout(async () => {
    const text = $("input").value;
    if (!text && !attached.length) { $("count").textContent = ""; return; }
    try {
      const b = body([...(current ? current.messages : []), {role: "user", content: Repo.prompt(attached) + text}]);
      const r = await fetch("/tokenize", {method: "POST", headers: headers(), body: JSON.stringify(
        {messages: b.messages, thinking: b.thinking})});
      const v = await r.json();
      if (r.ok) $("count").textContent = v.count + " of " + v.max_model_len + " tokens";
    } catch { $("count").textContent = ""; }
  }, 300);
}

/* ------------------------------------------------------------------ controls */

const fields = {
  "set-system": "system", "set-effort": "effort", "set-budget": "budget", "set-temperature": "temperature",
  "set-top-p": "topP", "set-top-k": "topK", "set-min-p": "minP", "set-max-tokens": "maxTokens",
  "set-seed": "seed", "set-file-tokens": "fileTokens", "set-key": "key", "set-theme": "theme",
};

const side = open => {
  $("side").classList.toggle("closed", !open);
  $("side-toggle").setAttribute("aria-expanded", String(open));
};

/* Where the list of conversations lies over the rest, it is closed; whether it was open. */
function narrow() {
  if (!matchMedia("(max-width: 45rem)").matches || $("side").classList.contains("closed")) return false;
  side(false);
  return true;
}

function theme() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

for (const [id, name] of Object.entries(fields)) {
  const e = $(id);
  e.value = settings[name];
  e.addEventListener("change", () => {
    if (!e.checkValidity()) { e.value = settings[name]; return; }
    settings[name] = e.type === "number" && name !== "seed" ? Number(e.value) : e.value;
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
    theme();
    if (name === "key") props();
    chooseAgain();
  });
}

/* Needs the key, if the server wants one. */
function props() {
  fetch("/props", {headers: headers()}).then(async r => {
    if (r.ok) {
      const p = await r.json();
      contextLength = p.context_length;
      say(p.model + ", " + p.context_length + " tokens");
      if (attached.length) chooseAgain();
    } else if (r.status === 401) { say("an API key is needed: Settings", true); }
  }).catch(() => say("the server is not there", true));
}

$("form").addEventListener("submit", async e => {
  e.preventDefault();
  let counted;
  for (let r; r !== ready;) counted = await (r = ready);
  if (!counted) { chooseAgain(); return; }  /* what is in is not known; the message stays */
  const text = $("input").value;
  if (running || (!text.trim() && !attached.length)) return;
  if (!current) {
    current = {title: text.trim().slice(0, 60) || "Files", messages: []};
    chats.unshift(current);
  }
  const m = {role: "user", content: Repo.prompt(attached) + text};
  if (attached.length) {
    m.text = text;
    m.files = Repo.inside(attached).map(a => ({path: a.path, root: a.root, tokens: a.tokens, length: a.prompt.length}));
  }
  current.messages.push(m);
  $("input").value = "";
  attached = [];
  showFiles();
  $("count").textContent = "";
  show();
  answer();
});
$("input").addEventListener("keydown", e => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); $("form").requestSubmit(); }
});
$("input").addEventListener("input", count);
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => { stop(); current = null; show(); narrow(); $("input").focus(); });
$("side-toggle").addEventListener("click", () => side($("side").classList.contains("closed")));
document.querySelector("main").addEventListener("click", e => { if (e.target.id !== "side-toggle") narrow(); });
$("settings-open").addEventListener("click", () => $("settings").showModal());
$("pick-files").addEventListener("change", e => attach(e.target.files, false).then(() => { e.target.value = ""; }));
$("pick-folder").addEventListener("change", e => attach(e.target.files, true).then(() => { e.target.value = ""; }));
document.addEventListener("keydown", e => {
  if (e.key === "Escape" && !$("settings").open) {
    if (running) stop();
    if (narrow()) $("side-toggle").focus();
  }
  if (e.ctrlKey && e.shiftKey && e.key.toLowerCase() === "o") { e.preventDefault(); $("new").click(); }
});
/* The end of a conversation stays in sight when attached files or the keyboard of a telephone take room from it. */
let ended = true;
$("log").addEventListener("scroll", () => { ended = atEnd(); });
new ResizeObserver(() => { if (ended) $("log").scrollTop = $("log").scrollHeight; }).observe($("log"));
matchMedia("(max-width: 45rem)").addEventListener("change", e => side(!e.matches));
narrow();
theme();
show();
$("input").focus();
props();
