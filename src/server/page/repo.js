/* A folder as the beginning of a prompt, byte by byte what dsv4 --repo makes of it (tools/repo*.c,
 * docs/repository.md). Knows nothing of the page: files in, chosen files and text out. */
"use strict";

const Repo = (() => {
  const FILE_BYTES = 4 << 20, DEPTH = 100;
  const BUILT_IN = ".hg/\n.svn/\nnode_modules/\n__pycache__/\n.venv/\n";
  const WHY = {
    over: "over the budget", large: "larger than 4 MiB", binary: "binary", utf8: "not UTF-8",
    name: "named with a backslash or control characters or not in UTF-8", unreadable: "not readable", deep: "too deep",
  };
  const encode = text => new TextEncoder().encode(text);
  const code = c => c.charCodeAt(0);

  /* ---------------------------------------------------------------- .gitignore, as git reads it */

  const between = (c, a, b) => c >= code(a) && c <= code(b);
  const lower = c => between(c, "a", "z"), upper = c => between(c, "A", "Z"), digit = c => between(c, "0", "9");
  const alnum = c => lower(c) || upper(c) || digit(c), graph = c => c > 0x20 && c < 0x7f;
  const CLASSES = {
    alnum, alpha: c => lower(c) || upper(c), blank: c => c === 0x20 || c === 9, cntrl: c => c < 0x20 || c === 0x7f,
    digit, graph, lower, print: c => graph(c) || c === 0x20, punct: c => graph(c) && !alnum(c),
    space: c => c === 0x20 || (c >= 9 && c <= 13), upper,
    xdigit: c => digit(c) || between(c, "a", "f") || between(c, "A", "F"),
  };
  const SLASH = code("/"), STAR = code("*"), BACKSLASH = code("\\"), OPEN = code("["), CLOSE = code("]");
  const WILD = encode("*?[\\");

  /* "[...]" at p[i]: the index behind it when it holds c, otherwise -1. */
  function set(p, i, c) {
    let inside = false, known = true, before = -1;
    const negated = ++i < p.length && (p[i] === code("!") || p[i] === code("^"));
    if (negated) i++;
    for (let first = true; first || i >= p.length || p[i] !== CLOSE; first = false) {
      if (i >= p.length) return -1;
      if (p[i] === OPEN && p[i + 1] === code(":")) {
        const end = p.indexOf(CLOSE, i + 2);
        if (end > i + 2 && p[end - 1] === code(":")) {
          const name = String.fromCharCode(...p.subarray(i + 2, end - 1));
          if (!Object.hasOwn(CLASSES, name)) known = false;
          else if (CLASSES[name](c)) inside = true;
          i = end + 1;
          before = -1;
          continue;
        }
      }
      const range = p[i] === code("-") && before >= 0 && i + 1 < p.length && p[i + 1] !== CLOSE;
      if (range) i++;
      if (p[i] === BACKSLASH && ++i === p.length) return -1;
      if (range ? before <= c && c <= p[i] : c === p[i]) inside = true;
      before = range ? -1 : p[i];
      i++;
    }
    return known && inside !== negated && c !== SLASH ? i + 1 : -1;
  }

  /* One element of the pattern against one byte: the index behind it, -1 for none. */
  function one(p, i, c) {
    if (p[i] === OPEN) return set(p, i, c);
    if (p[i] === code("?")) return c === SLASH ? -1 : i + 1;
    if (p[i] === BACKSLASH && ++i === p.length) return -1;
    return p[i] === c ? i + 1 : -1;
  }

  /* A star stands for anything inside a name, two between slashes for any number of directories (git cuts the pattern
   * in front of its first wildcard, so two stars there count as if behind a slash). */
  function matches(p, t) {
    const first = p.findIndex(c => WILD.includes(c));
    let i = 0, k = 0, star = -1, starAt = 0, pair = -1, pairAt = 0;
    for (;;) {
      if (p[i] === STAR) {
        let j = i;
        const whole = i === first || p[i - 1] === SLASH;
        while (p[j] === STAR) j++;
        if (whole && j - i >= 2 && j === p.length) return true;
        if (whole && j - i >= 2 && p[j] === SLASH) { i = pair = j + 1; pairAt = k; star = -1; }
        else { i = star = j; starAt = k; }
        continue;
      }
      if (i === p.length && k === t.length) return true;
      const next = i < p.length && k < t.length ? one(p, i, t[k]) : -1;
      if (next >= 0) {
        i = next;
        if (t[k++] === SLASH) star = -1;
      } else if (star >= 0 && starAt < t.length && t[starAt] !== SLASH) {
        i = star;
        k = ++starAt;
      } else {
        if (pair < 0 || (pairAt = t.indexOf(SLASH, pairAt)) < 0) return false;
        i = pair;
        k = ++pairAt;
        star = -1;
      }
    }
  }

  /* Without blanks at the end; one behind a backslash stays. */
  function trimmed(line) {
    let end = 0;
    for (let i = 0; i < line.length; i++) {
      if (line[i] === BACKSLASH) {
        if (++i === line.length) return line;
        end = i + 1;
      } else if (line[i] !== 0x20) end = i + 1;
    }
    return line.subarray(0, end);
  }

  /* The rules of a .gitignore (bytes) that lies in the directory `base` ("" or "src/"). */
  function rules(text, base) {
    const out = [];
    if (text[0] === 0xef && text[1] === 0xbb && text[2] === 0xbf) text = text.subarray(3);
    for (let at = 0, end; at < text.length; at = end + 1) {
      end = text.indexOf(10, at);
      if (end < 0) end = text.length;
      let line = text.subarray(at, end > at && text[end - 1] === 13 ? end - 1 : end);
      if (!line.length || line[0] === code("#")) continue;
      line = trimmed(line);
      const negated = line[0] === code("!");
      if (negated) line = line.subarray(1);
      const dirOnly = line[line.length - 1] === SLASH;
      if (dirOnly) line = line.subarray(0, -1);
      if (!line.length) continue;
      const whole = line.includes(SLASH);
      out.push({pattern: line[0] === SLASH ? line.subarray(1) : line, skip: encode(base).length, negated, dirOnly, whole});
    }
    return out;
  }

  /* What the last rule that matches says; `of` has the rules by directory. */
  function hides(of, path, dir) {
    const bytes = encode(path), name = bytes.subarray(bytes.lastIndexOf(SLASH) + 1);
    for (let cut = path.lastIndexOf("/"); ; cut = path.lastIndexOf("/", cut - 1)) {
      const list = of.get(path.slice(0, cut + 1)) || [];
      for (let i = list.length - 1; i >= 0; i--) {
        const r = list[i];
        if ((dir || !r.dirOnly) && matches(r.pattern, r.whole ? bytes.subarray(r.skip) : name)) return !r.negated;
      }
      if (cut <= 0) return false;
    }
  }

  /* ---------------------------------------------------------------- files */

  function entry(file, path) {
    const e = {file, path, key: encode(path), bytes: file.size, why: "", tokens: 0, prompt: undefined};
    if (path.split("/").length - 1 > DEPTH) e.why = WHY.deep;
    else if (/[\0-\x1f\x7f\\\ufffd]/.test(path + file.name)) e.why = WHY.name;
    else if (file.size > FILE_BYTES) e.why = WHY.large;
    e.unfit = e.why !== "";
    return e;
  }

  /* files: [{file, path}], paths relative to the folder. What no rule hides, and how many were hidden (a whole
   * directory counts as one). */
  async function list(files) {
    const of = new Map(), hidden = new Set(), known = new Map(), entries = [];
    for (const {file, path} of files)
      if (path === ".gitignore" || path.endsWith("/.gitignore")) {
        const base = path.slice(0, -".gitignore".length);
        of.set(base, rules(new Uint8Array(await file.arrayBuffer()), base));
      }
    of.set("", [...rules(encode(BUILT_IN), ""), ...(of.get("") || [])]);
    const hiddenDir = dir => {  /* "src/lib" */
      if (known.has(dir)) return known.get(dir);
      const cut = dir.lastIndexOf("/");
      let is = cut >= 0 && hiddenDir(dir.slice(0, cut));
      if (!is && hides(of, dir, true)) {
        is = true;
        hidden.add(dir);
      }
      known.set(dir, is);
      return is;
    };
    for (const {file, path} of files) {
      if (path.split("/").includes(".git")) continue;
      const cut = path.lastIndexOf("/");
      if (cut >= 0 && hiddenDir(path.slice(0, cut))) continue;
      if (hides(of, path, false)) hidden.add(path);
      else entries.push(entry(file, path));
    }
    return {entries, ignored: hidden.size};
  }

  const byPath = (a, b) => {
    const n = Math.min(a.key.length, b.key.length);
    for (let i = 0; i < n; i++) if (a.key[i] !== b.key[i]) return a.key[i] - b.key[i];
    return a.key.length - b.key.length;
  };

  /* The part of the prompt that the file is, or why it is none. */
  async function read(e, count) {
    let bytes, prompt;
    try { bytes = new Uint8Array(await e.file.arrayBuffer()); } catch { e.why = WHY.unreadable; }
    if (bytes && bytes.includes(0)) e.why = WHY.binary;
    if (!e.why) {
      try {
        const text = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(bytes);
        prompt = "File: " + e.path + "\n" + text + (text && !text.endsWith("\n") ? "\n\n" : "\n");
      } catch { e.why = WHY.utf8; }
    }
    e.unfit = e.why !== "";
    if (e.unfit) return;
    e.tokens = await count(prompt);
    e.prompt = prompt;  /* both or none: counting may fail, and is tried again */
  }

  /* Files are taken, the smallest first, until one would make more than `budget` tokens: that one and all larger ones
   * stay out. Sets `why` of every entry ("": it is in). `count(text)` is asked once for a file; `stale()` says that
   * somebody began anew. */
  async function choose(entries, budget, count, stale) {
    let sum = 0, full = false;
    for (const e of [...entries].sort((a, b) => a.bytes - b.bytes || byPath(a, b))) {
      if (e.unfit) continue;
      e.why = full ? WHY.over : "";
      if (full) continue;
      if (e.prompt === undefined) await read(e, count);
      if (stale()) return;
      if (e.unfit) continue;
      full = e.tokens > budget - sum;
      if (full) e.why = WHY.over;
      else sum += e.tokens;
    }
  }

  return {
    entry, list, choose,
    sort: entries => entries.sort(byPath),
    inside: entries => entries.filter(e => !e.why),
    prompt: entries => entries.filter(e => !e.why).map(e => e.prompt).join(""),
  };
})();
