/* Markdown as elements of the page. Text of the model becomes text nodes and never markup, whatever it contains. */
"use strict";

const make = (name, text, cls) => {
  const e = document.createElement(name);
  if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls;
  return e;
};
const button = (text, label, act) => {
  const b = make("button", text);
  b.type = "button";
  b.setAttribute("aria-label", label);
  b.addEventListener("click", act);
  return b;
};

/* A button that copies what `text` gives, and says so for a moment. */
const copier = (label, text) => button("Copy", label, async e => {
  const b = e.currentTarget;
  try {
    await navigator.clipboard.writeText(text());
    b.textContent = "Copied";
  } catch { b.textContent = "Not allowed"; }  /* browsers give no clipboard to pages without TLS */
  setTimeout(() => { b.textContent = "Copy"; }, 1500);
});

function inline(to, text) {
  const rule = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([\s\S]+?)\*\*|\*([^\s*][^*]*?)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/g;
  let at = 0;
  for (const m of text.matchAll(rule)) {
    to.append(text.slice(at, m.index));
    at = m.index + m[0].length;
    if (m[2] !== undefined) to.append(make("code", m[2].trim()));
    else if (m[3] !== undefined) { const e = make("strong"); inline(e, m[3]); to.append(e); }
    else if (m[4] !== undefined) { const e = make("em"); inline(e, m[4]); to.append(e); }
    else {
      const e = make("a", m[5]);
      e.href = m[6];
      e.rel = "noopener noreferrer";
      e.target = "_blank";
      e.title = m[6];
      to.append(e);
    }
  }
  to.append(text.slice(at));
}

function codeBlock(lines, language) {
  const box = make("div", undefined, "code"), head = make("div", undefined, "head"), pre = make("pre");
  const text = lines.join("\n");
  head.append(make("span", language || "text"), copier("Copy the code", () => text));
  pre.append(make("code", text));
  pre.tabIndex = 0;
  box.append(head, pre);
  return box;
}

const ITEM = /^(\s*)(?:[-*+]|(\d+)[.)])\s+(.*)/;

/* The list that begins at line i, with those inside its items; the index behind it. */
function list(to, lines, i) {
  const first = ITEM.exec(lines[i]), depth = first[1].length, e = make(first[2] ? "ol" : "ul");
  let item = null, m;
  if (first[2] && first[2] !== "1") e.start = Number(first[2]);
  while (i < lines.length) {
    if ((m = ITEM.exec(lines[i])) && m[1].length > depth && item) {
      i = list(item, lines, i);
    } else if (m && m[1].length >= depth && !!m[2] === !!first[2]) {
      item = make("li");
      inline(item, m[3]);
      e.append(item);
      i++;
    } else if (!m && item && lines[i].trim() && /^\s/.test(lines[i]) && !/^\s*(```|~~~)/.test(lines[i])) {
      item.append(" ");
      inline(item, lines[i].trim());
      i++;
    } else if (!lines[i].trim() && (m = ITEM.exec(lines[i + 1] || "")) && m[1].length >= depth && !!m[2] === !!first[2]) {
      i++;
    } else { break; }
  }
  to.append(e);
  return i;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map(c => c.trim());
}

function markdown(to, text) {
  const lines = text.split("\n"), out = document.createDocumentFragment();
  let i = 0;
  const paragraph = [];
  const flush = () => {
    if (!paragraph.length) return;
    const p = make("p");
    inline(p, paragraph.join("\n"));
    out.append(p);
    paragraph.length = 0;
  };
  while (i < lines.length) {
    const line = lines[i];
    let m;
    if ((m = /^\s*(```+|~~~+)\s*([\w+#.-]*)/.exec(line))) {
      flush();
      const code = [];
      for (i++; i < lines.length && !lines[i].trim().startsWith(m[1]); i++) code.push(lines[i]);
      i++;
      out.append(codeBlock(code, m[2]));
    } else if ((m = /^(#{1,6})\s+(.*)/.exec(line))) {
      flush();
      const h = make("h" + Math.min(6, m[1].length + 2));
      inline(h, m[2]);
      out.append(h);
      i++;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      flush();
      out.append(make("hr"));
      i++;
    } else if (ITEM.test(line)) {
      flush();
      i = list(out, lines, i);
    } else if (/^\s*>/.test(line)) {
      flush();
      const quote = [];
      for (; i < lines.length && /^\s*>/.test(lines[i]); i++) quote.push(lines[i].replace(/^\s*>\s?/, ""));
      const q = make("blockquote");
      inline(q, quote.join("\n"));
      out.append(q);
    } else if (line.includes("|") && /^\s*\|?[\s:|-]+\|[\s:|-]*$/.test(lines[i + 1] || "")) {
      flush();
      const table = make("table"), row = (line, name) => {
        const tr = make("tr");
        for (const c of cells(line)) { const e = make(name); inline(e, c); tr.append(e); }
        table.append(tr);
      };
      row(line, "th");
      for (i += 2; i < lines.length && lines[i].includes("|"); i++) row(lines[i], "td");
      out.append(table);
    } else if (!line.trim()) {
      flush();
      i++;
    } else {
      paragraph.push(line);
      i++;
    }
  }
  flush();
  to.replaceChildren(out);
}
