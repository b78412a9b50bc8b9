"""The chat page as a person uses it, in a headless Chromium driven over its debugging pipe.

usage: python tests/test_page.py PROGRAM CHROMIUM FOLDER     (from the top of the tree)
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import repo_folder

PROGRAM, CHROMIUM, SHOTS = sys.argv[1:4]
os.makedirs(SHOTS, exist_ok=True)
temp = tempfile.TemporaryDirectory()


class Browser:
    def __init__(self):
        to_child, from_child = os.pipe(), os.pipe()

        def fds():  # it reads commands at 3 and writes events at 4
            a, b = os.dup(to_child[0]), os.dup(from_child[1])
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.p = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--remote-debugging-pipe", "--user-data-dir=" + temp.name + "/profile",
             "--window-size=1200,800", "about:blank"],
            preexec_fn=fds, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_child[0])
        os.close(from_child[1])
        self.w, self.r = to_child[1], from_child[0]
        self.buffer, self.n, self.complaints = b"", 0, []
        self.session = None

    def message(self):
        while b"\0" not in self.buffer:
            piece = os.read(self.r, 1 << 20)
            if not piece:
                raise RuntimeError("the browser ended")
            self.buffer += piece
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def call(self, method, **params):
        self.n += 1
        m = {"id": self.n, "method": method, "params": params}
        if self.session:
            m["sessionId"] = self.session
        os.write(self.w, json.dumps(m).encode() + b"\0")
        while True:
            r = self.message()
            if r.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(r["params"])[:600])
            if r.get("id") == self.n:
                if "error" in r:
                    raise RuntimeError("%s: %s" % (method, r["error"]))
                return r["result"]

    def open(self, url):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(domain + ".enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && !!document.getElementById('send')")

    def js(self, code):
        r = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in r:
            raise RuntimeError("%s: %s" % (code, json.dumps(r["exceptionDetails"])[:400]))
        return r["result"].get("value")

    def wait(self, code, seconds=60):
        end = time.time() + seconds
        while not self.js(code):
            if time.time() > end:
                self.shot("failed")
                raise AssertionError("waited in vain for: %s" % code)
            time.sleep(0.05)

    def type(self, text):
        self.js("document.getElementById('input').focus()")
        self.call("Input.insertText", text=text)

    def key(self, key, code, number):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number)

    def enter(self):
        self.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter",
                  windowsVirtualKeyCode=13, text="\r")
        self.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def files(self, id, paths):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#" + id)["nodeId"]
        self.call("DOM.setFileInputFiles", files=paths, nodeId=node)

    def set(self, id, value):
        self.js("{const e = document.getElementById(%s); e.value = %s; "
                "e.dispatchEvent(new Event('change'))}" % (json.dumps(id), json.dumps(str(value))))

    def shot(self, name):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(os.path.join(SHOTS, name + ".png"), "wb") as f:
            f.write(base64.b64decode(data))


IDLE = "document.getElementById('stop').hidden"
LAST = "[...document.querySelectorAll('.message.assistant .text')].pop().textContent"


def run(b, url):
    b.open(url)
    b.set("set-temperature", 0)
    question = "What is the capital of Cuba?"
    env = dict(os.environ, DSV4_THREADS="1")
    env.pop("DSV4_MODEL", None)
    want = subprocess.run([os.path.dirname(PROGRAM) + "/dsv4", "ask", "--think", "off", "--greedy", question],
                          check=True, env=env, stdout=subprocess.PIPE).stdout.decode()
    b.type(question)
    b.wait("/\\d+ of \\d+ tokens/.test(document.getElementById('count').textContent)")
    b.enter()
    b.wait(IDLE + " && document.querySelectorAll('.message.assistant').length === 1")
    assert b.js(LAST).strip() == want.strip(), (b.js(LAST), want)
    assert "tokens/s" in b.js("document.querySelector('.message.assistant .tools').textContent")
    b.shot("answer")
    yield "types and streams"

    b.set("set-effort", "high")
    b.type("What is 3 + 4?")
    b.enter()
    b.wait(IDLE + " && document.querySelectorAll('.message.assistant').length === 2")
    assert not b.js("document.querySelector('details.reasoning').open")
    assert re.search(r"s, [1-9]\d* tokens", b.js("document.querySelector('summary').textContent"))
    b.js("document.querySelector('summary').click()")
    assert b.js("document.querySelector('details.reasoning').open && "
                "document.querySelector('.thought').textContent.length > 0")
    b.shot("reasoning")
    b.set("set-effort", "none")
    yield "unfolds reasoning"

    folder = os.path.join(temp.name, "project")
    repo_folder.nasty(folder)
    b.files("pick-folder", [folder])
    b.wait("document.querySelectorAll('#files li').length > 0")
    names = b.js("[...document.querySelectorAll('#files li:not(.out)')].map(e => e.textContent).join(' ')")
    assert "z.py (" in names and "lib/key.c (" in names, names
    assert "a.log" not in names and "gone.py" not in names and "binary.bin" not in names, names
    out = b.js("[...document.querySelectorAll('#files li.out')].map(e => e.textContent).join(' ')")
    assert "binary: binary.bin, late-nul.txt" in out and "larger than 4 MiB: huge.txt" in out and "not UTF-8: cut.txt, latin1.txt" in out, out
    b.shot("files")
    b.set("set-max-tokens", 5)
    b.type("In which file can I find key?")
    b.enter()
    b.wait(IDLE + " && document.querySelectorAll('.message.assistant').length === 3")
    b.set("set-max-tokens", 0)
    sent = b.js("JSON.parse(localStorage.getItem('dsv4.chats'))[0].messages[4].content")
    want = subprocess.run([os.path.dirname(PROGRAM) + "/dsv4", "repo", "-q", folder, "In which file can I find key?"],
                          check=True, env=env, stdout=subprocess.PIPE).stdout
    assert sent.encode() == want, (sent, want)
    yield "attaches a folder: the prompt of dsv4 --repo"

    b.set("set-file-tokens", 400)
    b.files("pick-folder", [folder])
    b.wait("document.querySelectorAll('#files li').length > 0")
    want = subprocess.run([os.path.dirname(PROGRAM) + "/dsv4", "repo", "-q", "--repo-budget", "400", folder],
                          check=True, env=env, stdout=subprocess.PIPE).stdout
    assert b.js("ready.then(() => Repo.prompt(attached))").encode() == want
    b.js("[...document.querySelectorAll('#files button')].pop().click()")
    b.wait("document.querySelectorAll('#files li').length === 0")
    b.set("set-file-tokens", 0)
    yield "keeps the same budget"

    if shutil.which("git"):
        path = os.path.join(temp.name, "random")
        for files in repo_folder.cases(30, 2):
            repo_folder.make(path, files)
            got = b.js("Repo.list(Object.entries(%s).map(([path, text]) => ({path, file: new File([text], 'x')})))"
                       ".then(l => l.entries.map(e => e.path))" % json.dumps(files))
            want = sorted(p.decode() for p in repo_folder.git_list(path))
            assert sorted(got) == want, (files, got, want)
        yield "reads .gitignore as git does"

    b.js("document.getElementById('new').click()")
    b.set("set-temperature", 1)
    b.type("Tell me a very long story about a child and a fox and a river, please.")
    b.js("{const f = window.fetch; window.fetch = (u, o) => { if (u.includes('chat')) { const v = JSON.parse(o.body);"
         " v.temperature = 2; v.min_p = 0; v.max_tokens = 3000; o.body = JSON.stringify(v); } return f(u, o); }; }")
    b.js("document.getElementById('send').click()")
    b.wait("!document.getElementById('stop').hidden && document.querySelectorAll('.message.assistant').length === 1")
    b.key("Escape", "Escape", 27)
    b.wait(IDLE)
    assert b.js("document.querySelectorAll('#list li').length") == 2
    b.shot("stopped")
    yield "stops and keeps two conversations"

    b.js("[...document.querySelectorAll('.message.user button')].pop().click()")
    assert b.js("document.getElementById('input').value").startswith("Tell me a very long story")
    b.js("document.getElementById('input').value = ''")
    b.call("Page.reload")
    b.wait("document.readyState === 'complete' && document.querySelectorAll('#list li').length === 2")
    b.js("document.querySelectorAll('#list .open')[1].click()")
    assert b.js("document.querySelectorAll('.message').length") == 6
    before = b.js("document.querySelectorAll('.message.assistant').length")
    b.set("set-temperature", 0)
    b.js("[...document.querySelectorAll('.message.assistant button')].filter(e => e.textContent === "
         "'Regenerate').pop().click()")
    b.wait(IDLE + " && document.querySelectorAll('.message.assistant').length === %d" % before)
    yield "edits, reloads, regenerates"

    b.js("{const e = document.createElement('div'); e.className = 'text'; e.id = 'probe'; document.body.append(e);"
         "markdown(e, '# T\\n**b** `c` <img src=x onerror=alert(1)> [l](javascript:alert(1)) [ok](https://a.b)"
         "\\n\\n```js\\nlet x;\\n```\\n\\n- one\\n- two\\n\\n|a|b|\\n|-|-|\\n|1|2|'); }")
    assert b.js("document.querySelectorAll('#probe img, #probe script').length") == 0
    assert b.js("document.querySelectorAll('#probe a').length") == 1
    assert b.js("document.querySelectorAll('#probe .code button, #probe li, #probe td').length") == 5
    b.js("document.getElementById('probe').remove()")
    b.set("set-theme", "dark")
    b.js("document.getElementById('settings-open').click()")
    b.shot("dark-settings")
    b.set("set-theme", "light")
    b.js("document.getElementById('settings').close()")
    b.shot("light")
    unnamed = b.js("[...document.querySelectorAll('button, input, select, textarea')].filter(e => !e.textContent."
                   "trim() && !e.getAttribute('aria-label') && !(e.labels && e.labels.length)).length")
    assert unnamed == 0, unnamed
    yield "Markdown is harmless, controls have names"

    assert b.js("const e = document.createElement('div'); markdown(e, '3. a\\n   more\\n   - b\\n     - c\\n4. d\\n\\n---\\n- e'); "
                "e.innerHTML") == ('<ol start="3"><li>a more<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ol>'
                                   '<hr><ul><li>e</li></ul>')
    code = "\n".join("    for (int i = 0; i < n; i++) sum += table[i * stride + offset] * weights[i]; /* line %d */" % i
                     for i in range(30))
    text = ("Here is **the loop**, with `stride`:\n\n1. first\n   - inner\n2. second\n\n```c\n" + code +
            "\n```\n\n| name | bytes |\n|-|-|\n| a | 1 |\n\n> quoted")
    files = [{"path": "src/main.c", "root": "x", "tokens": 7, "length": 13}, {"path": "y", "root": "x", "tokens": 2, "length": 4}]
    chats = [{"title": "A long answer", "messages": [
        {"role": "user", "content": "File: main.c\nabc\nWhat?", "text": "What?", "files": files},
        {"role": "assistant", "content": text, "reasoning": "A thought.", "reasoningTokens": 3, "stats": "9 + 99 tokens"}]}]
    b.js("localStorage.setItem('dsv4.chats', %s)" % json.dumps(json.dumps(chats)))
    b.call("Page.reload")
    b.wait("document.readyState === 'complete' && document.querySelectorAll('.message').length === 2")
    assert b.js("[...document.querySelectorAll('summary')].map(e => e.textContent).join()") == (
        "2 files (9 tokens),Reasoning (3 tokens)")
    b.js("document.querySelector('details.reasoning').open = true")
    for name, wide, high in (("code-wide", 1200, 800), ("code-narrow", 390, 760)):
        b.call("Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=False)
        time.sleep(0.2)
        assert b.js("document.documentElement.scrollWidth <= innerWidth"), name
        for theme in ("light", "dark"):
            b.set("set-theme", theme)
            b.js("document.getElementById('log').scrollTop = 0")
            b.shot("%s-%s" % (name, theme))
    yield "shows code, tables and lists on wide and narrow windows"

    toggle = "document.getElementById('side-toggle')"
    b.call("Page.reload")
    b.wait("document.readyState === 'complete' && document.querySelectorAll('.message').length === 2")
    assert b.js(toggle + ".getAttribute('aria-expanded')") == "false"
    b.js(toggle + ".click()")
    assert b.js(toggle + ".getAttribute('aria-expanded') + document.getElementById('side').className") == "true"
    b.shot("narrow-list")
    b.key("Escape", "Escape", 27)
    assert b.js(toggle + ".getAttribute('aria-expanded')") == "false"
    assert b.js("document.activeElement === " + toggle)
    b.js("document.getElementById('settings-open').click()")
    b.shot("narrow-settings")
    b.key("Escape", "Escape", 27)
    b.wait("!document.getElementById('settings').open")
    b.call("Emulation.clearDeviceMetricsOverride")
    yield "keyboard and narrow windows"

    b.js("document.querySelector('.message.user .tools button').click()")
    assert b.js("document.getElementById('input').value") == "What?"
    assert b.js("document.querySelectorAll('#files li').length") == 3  # two, and the button that removes them
    b.wait("document.getElementById('count').textContent")
    assert b.js("Repo.prompt(attached)") == "File: main.c\nabc\n"
    b.set("set-max-tokens", 2)
    b.js("document.getElementById('send').click()")
    b.wait(IDLE + " && document.querySelectorAll('.message.assistant').length === 1")
    assert b.js("JSON.parse(localStorage.getItem('dsv4.chats'))[0].messages[0].content") == "File: main.c\nabc\nWhat?"
    yield "edits a message with files"

    assert not b.complaints, b.complaints
    yield "no complaint of the content security policy, no exception"


def with_key(b, url):
    """A server that wants a key: files wait for it, and are counted once it is there."""
    files = "document.getElementById('files').textContent"
    state = "document.getElementById('state').textContent"
    paths = []
    for name in ("one.txt", "two.txt"):
        paths.append(temp.name + "/" + name)
        with open(paths[-1], "w", encoding="utf-8") as f:
            f.write("A fox.\n")
    b.open(url)
    b.wait(state + ".includes('API key is needed')")
    b.files("pick-files", paths[:1])
    b.wait(state + ".includes('cannot be counted')")
    b.type("What is in it?")
    b.js("document.getElementById('send').click()")
    time.sleep(0.5)
    assert b.js("document.querySelectorAll('.message').length") == 0
    assert b.js("document.getElementById('input').value") == "What is in it?"
    b.set("set-key", "secret-key-of-the-tests")
    b.wait("/one.txt [(][1-9]/.test(%s)" % files)
    assert "left out" not in b.js(files)
    b.files("pick-files", paths[1:])
    b.wait("/two.txt [(][1-9]/.test(%s)" % files)
    yield "files behind a key"


def served(*options):
    """A server on a port of its own: the process, and its address once it listens."""
    env = dict(os.environ, DSV4_THREADS="2")
    env.pop("DSV4_MODEL", None)
    log = tempfile.TemporaryFile()
    server = subprocess.Popen([PROGRAM, "--port", "0", *options], stderr=log, env=env)
    for _ in range(300):
        log.seek(0)
        m = re.search(rb"listening on http://\S+:(\d+)/", log.read())
        if m:
            return server, "http://127.0.0.1:%d/" % int(m[1])
        time.sleep(0.1)
    return server, None


def main():
    servers = []
    passed = failed = 0
    b = None
    try:
        b = Browser()
        for steps, options in ((run, ()), (with_key, ("--api-key", "secret-key-of-the-tests"))):
            server, url = served(*options)
            servers.append(server)
            for what in steps(b, url):
                passed += 1
    except Exception as e:
        failed += 1
        print("FAILED: the chat page after %d steps: %s: %s" % (passed, type(e).__name__, e))
        if b:
            print("  ", b.complaints, b.js("document.getElementById('state').textContent"))
    finally:
        if b:
            b.p.kill()
            b.p.wait()
        for server in servers:
            server.terminate()
            server.wait(60)
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


main()
