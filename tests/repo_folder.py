"""Folders for the tests of repository prompts: one with everything that can stand in the way, random ones for
.gitignore, and git's own opinion. Used by tests/test_repo.py (dsv4 --repo) and tests/test_page.py (the chat page)."""

import os
import random
import shutil
import subprocess


def write(folder, path, data):
    full = os.path.join(os.fsencode(folder), os.fsencode(path))
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def nasty(folder):
    """Rules in several files, files that are no text, names that are no line of text."""
    w = lambda path, data="x = 1\n": write(folder, path, data)
    w(".gitignore", "\ufeff# a comment\n*.log\n!keep.log\n/rooted.txt\nout/\n!out/no.txt\ndocs/**/secret\n**/deep/*.tmp\n"
      "trailing   \nquoted\\ \n\\#hash\n\\!bang\n[a-c].dat\n[!a-c].bin2\nx[]-]y\n[[:digit:]][^z].num\r\n\r\nopen[\nend\\\na/**\n!a/**/\n")
    for path in ("z.py", "lib/key.c", "lib.c", "lib-x.c", "a.log", "keep.log", "rooted.txt", "sub/rooted.txt", "out/no.txt",
                 "sub/out/no.txt", "sub/outer/yes.txt", "docs/secret", "docs/a/b/secret", "docs/public", "deep/1.tmp",
                 "q/deep/2.tmp", "q/deep/r/3.tmp", "trailing", "quoted ", "quoted", "#hash", "!bang", "a.dat", "d.dat",
                 "a.bin2", "d.bin2", "x]y", "x-y", "xzy", "1a.num", "1z.num", "open[", "end\\", "back\\slash.txt", "a/b/c.py",
                 "node_modules/m/index.js", "sub/__pycache__/c.pyc", ".git/config", "sub/.git/config", ".hidden/file",
                 "dir.log/inside", "nested/keep.me"):
        w(path)
    w("nested/.gitignore", "*\n!keep.me\n!.gitignore\n!below/\n!below/*.c\n")
    w("nested/below/x.c")
    w("nested/below/x.py")
    w("nested/gone.py")
    w("empty.py", "")
    w("no-newline.c", "int x;")
    w("crlf.txt", "a\r\nb\r\n")
    w("bom.txt", "\ufeffwith a mark\n")
    w("uml\u00e4ut-\u4f60\u597d-\U0001f600.txt", "gr\u00fc\u00df \U0001f600\n")
    w("\uff5e.txt", "sorts before the emoji in UTF-8 and behind it in UTF-16\n")
    w("\U0001f600.txt")
    w("markers.txt", "<\uff5cUser\uff5c> is text here, and so is <think>\n")
    w("binary.bin", b"\0\1\2")
    w("late-nul.txt", b"a" * 9000 + b"\0")
    w("latin1.txt", b"gr\xfc\xdf\n")
    w("cut.txt", b"a\xe4\xbd")
    w(b"new\nline.txt", "x\n")
    w(b"broken\xff.txt", "x\n")
    w(b"rub\x7fout/x.c", "x\n")
    w("/".join(["d%d" % (i % 10) for i in range(100)]) + "/file.c")
    w("/".join(["e%d" % (i % 10) for i in range(101)]) + "/file.c")
    with open(os.path.join(folder, "huge.txt"), "wb") as f:
        f.truncate(2 << 30)  # a hole: no byte of it may be read
    os.symlink(".", os.path.join(folder, "loop"))
    os.symlink("z.py", os.path.join(folder, "link.py"))
    os.symlink("nowhere", os.path.join(folder, "dangling"))


NAMES = ["a", "b", "ab", "abc", "a.c", "b.c", "x-y", "[a]", "a b", "a*"]
PIECES = ["a", "b", "c", ".", "*", "**", "?", "[ab]", "[!a]", "[a-c]", "[^b-]", "[]a]", "\\*", "\\[", "/", "/", "/**/", "**/",
          "[[:alpha:]]", "[[:punct:]]", "[a", " ", "\\", "-", "x"]


def cases(n, seed):
    """n times {path: text} with rules that nobody would write by hand."""
    r = random.Random(seed)
    for _ in range(n):
        files, dirs = {}, ["", "a/", "b/", "a/b/", "a/a.c/", "ab/a/b/"]
        for d in dirs:
            for name in r.sample(NAMES, 5):
                if d + name + "/" not in dirs:
                    files[d + name] = "x\n"
        for d in r.sample(dirs, 2):
            lines = []
            for _ in range(r.randint(1, 5)):
                line = "".join(r.choice(PIECES) for _ in range(r.randint(1, 5)))
                lines.append(r.choice(["", "", "!", "/"]) + line + r.choice(["", "", "/", " ", "*"]))
            files[d + ".gitignore"] = "\n".join(lines) + r.choice(["", "\n", "\r\n"])
        yield {p: t for p, t in files.items() if not any(q.startswith(p + "/") for q in files)}


def make(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    for path, text in files.items():
        write(folder, path, text)


BUILT_IN = {b".git", b".hg", b".svn", b"node_modules", b"__pycache__", b".venv"}


def git_list(folder, git="git"):
    """Paths (bytes) that git would add: what no .gitignore hides."""
    empty = os.path.join(os.path.dirname(folder.rstrip("/")), "empty.git")
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    if not os.path.isdir(empty):
        subprocess.run([git, "init", "-q", "--bare", empty], check=True, env=env)
    out = subprocess.run([git, "--git-dir", empty, "--work-tree", folder, "ls-files", "-o", "-z", "--exclude-standard"],
                         check=True, env=env, cwd=folder, stdout=subprocess.PIPE).stdout
    return {p for p in out.split(b"\0") if p and not BUILT_IN & set(p.split(b"/"))}
