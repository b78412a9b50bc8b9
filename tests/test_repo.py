"""dsv4 --repo and dsv4 repo: which files, in which order, what is told. Rules of .gitignore are compared with git.

usage: python tests/test_repo.py PROGRAM     (from the top of the tree)
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import repo_folder

PROGRAM = os.path.abspath(sys.argv[1])
GIT = shutil.which("git")
temp = tempfile.TemporaryDirectory()
tests = []


def test(f):
    tests.append(f)
    return f


def run(*args, code=0, input=b""):
    env = {"PATH": os.environ["PATH"], "DSV4_THREADS": "1", "HOME": temp.name}
    p = subprocess.run([PROGRAM, *args], input=input, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert p.returncode == code, (args, p.returncode, p.stderr[-400:])
    return p.stdout, p.stderr.decode(errors="replace")


def listing(folder, *args):
    return json.loads(run("repo", "--json", *args, folder)[0])


def folder(files):
    path = tempfile.mkdtemp(dir=temp.name)
    repo_folder.make(path, files)
    return path


def shown(path):
    return path.decode(errors="replace")


@test
def everything_in_the_way():
    path = os.path.join(temp.name, "nasty")
    repo_folder.nasty(path)
    v = listing(path)
    got = {f["path"] for f in v["files"]}
    why = {f["path"]: f["why"] for f in v["left_out"]}
    for name, reason in (("huge.txt", "larger than 4 MiB"), ("binary.bin", "binary"), ("late-nul.txt", "binary"), ("latin1.txt", "not UTF-8"),
                         ("cut.txt", "not UTF-8"), ("loop", "symbolic link"), ("link.py", "symbolic link"),
                         ("dangling", "symbolic link"), ("new\nline.txt", "named with a backslash or control characters or not in UTF-8"),
                         ("broken\ufffd.txt", "named with a backslash or control characters or not in UTF-8"),
                         ("end\\", "named with a backslash or control characters or not in UTF-8"),
                         ("back\\slash.txt", "named with a backslash or control characters or not in UTF-8"),
                         ("rub\x7fout/", "named with a backslash or control characters or not in UTF-8")):
        assert why.get(name) == reason, (name, why.get(name))
    deep = [p for p in why if why[p] == "too deep"]
    assert len(deep) == 1 and deep[0].count("/") == 101, deep
    assert "empty.py" in got and "keep.log" in got and "nested/keep.me" in got and "nested/below/x.c" in got
    assert not any(".git/" in p or "node_modules" in p or "__pycache__" in p for p in got)
    if GIT:
        want = {shown(p) for p in repo_folder.git_list(path)}
        found = {p for p in got | set(why) if not p.endswith("/")}
        want -= {p for p in want if any(p.startswith(d) for d in why if d.endswith("/"))}
        assert found == want, (sorted(found - want), sorted(want - found))


@test
def the_prompt():
    path = folder({"b.c": "int b;\n", "a/x.py": "x", "a.py": "", ".gitignore": "*.o\n", "b.o": "x"})
    out, err = run("repo", path, "Where", "is b?")
    assert out == b"File: .gitignore\n*.o\n\nFile: a.py\n\nFile: a/x.py\nx\n\nFile: b.c\nint b;\n\nWhere is b?", out
    assert "4 files" in err and "1 ignored" in err and "b.c" in err, err
    assert run("repo", "-q", path) == (out[:-len(b"Where is b?")], "")
    # the path of the folder is no part of it, nor is how it was written
    assert run("repo", path + "/./", "Where is b?")[0] == out
    # a message of dsv4 is this text: the same number of tokens
    v = json.loads(run("--json", "--greedy", "-n", "1", "--repo", path, "Where is b?")[0])
    w = json.loads(run("--json", "--greedy", "-n", "1", "-q", input=out)[0])
    assert v["context_tokens"] == w["context_tokens"] > 30, (v, w)


@test
def the_budget():
    path = folder({"%c.txt" % c: "one two three four five\n" * n for c, n in zip("abcd", (40, 1, 20, 2))})
    whole = listing(path)
    assert [f["path"] for f in whole["files"]] == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert whole["budget"] == 16384 - 4096 and whole["tokens"] == sum(f["tokens"] for f in whole["files"])
    tokens = {f["path"]: f["tokens"] for f in whole["files"]}
    for budget, names in ((whole["tokens"], "abcd"), (whole["tokens"] - 1, "bcd"), (tokens["b.txt"] + tokens["d.txt"], "bd"),
                          (tokens["b.txt"], "b"), (1, "")):
        v = listing(path, "--repo-budget", str(budget))
        assert [f["path"][0] for f in v["files"]] == list(names), (budget, v)
        assert all(f["why"] == "over the budget" for f in v["left_out"]) and len(v["left_out"]) == 4 - len(names)
    assert listing(path, "--ctx", "64")["budget"] == 48
    err = run("repo", "--repo-budget", "12", path)[1]
    assert "left out, over the budget: a.txt, c.txt" in err, err


@test
def chat():
    path = folder({"a.txt": "alpha\n"})
    out, err = run("chat", "--greedy", "-n", "2", "--repo", path, input=b"Hello!\n/save %s/c.json\n" % temp.name.encode())
    first = json.load(open(temp.name + "/c.json"))["messages"][0]["content"]
    assert first == "File: a.txt\nalpha\n\nHello!", first
    out, err = run("chat", "--greedy", "-n", "2", input=b"/repo %s\nHello!\n/save %s/c.json\n" % (path.encode(), temp.name.encode()))
    assert json.load(open(temp.name + "/c.json"))["messages"][0]["content"] == first
    run("chat", "-n", "2", input=b"/repo\n", code=2)
    run("chat", "-n", "2", input=b"/repo /nowhere\n", code=3)


@test
def refused():
    path = folder({"a.txt": "x\n", "empty/.x": ""})
    for args, code, part in (((path + "/a.txt",), 3, "Not a directory"), ((path + "/none",), 3, "No such file"), (("",), 2, "empty"),
                             ((), 2, "")):
        err = run("repo", *args, code=code)[1]
        assert part in err and err.startswith("dsv4: "), err
        if args:
            run("--repo", args[0], "Hi", code=code)
    os.mkdir(path + "/void")
    assert run("repo", path + "/void")[0] == b""
    assert "no file of it can be sent" in run("--repo", path + "/void", "Hi", code=2)[1]
    big = folder({".gitignore": "x\n" * (1 << 19) + "y\n", "a.txt": "x\n"})
    assert ".gitignore: more than" in run("repo", big, code=3)[1]  # what it hides must not be sent


@test
def no_rights():
    if os.geteuid() == 0:  # nobody: root may read everything
        def drop():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
    else:
        drop = None
    path = folder({"a.txt": "x\n", "b.txt": "x\n", "shut/c.txt": "x\n", "rules/.gitignore": "s\n", "rules/s": "x\n"})
    os.chmod(temp.name, 0o755)
    os.chmod(path, 0o755)
    os.chmod(path + "/b.txt", 0)
    os.chmod(path + "/shut", 0)

    def ask(code):
        p = subprocess.run([PROGRAM, "repo", "--json", path], preexec_fn=drop, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           env={"PATH": os.environ["PATH"], "DSV4_THREADS": "1"})
        if drop and p.returncode != code and b"annot open: Permission denied" in p.stderr and path.encode() not in p.stderr:
            return None  # nobody may not even read the model here
        assert p.returncode == code, p.stderr
        return p

    p = ask(0)
    if p:
        why = {f["path"]: f["why"] for f in json.loads(p.stdout)["left_out"]}
        assert why == {"b.txt": "not readable", "shut/": "not readable"}, why
        os.chmod(path + "/rules/.gitignore", 0)
        assert b"rules/.gitignore: cannot open" in ask(3).stderr
    os.chmod(path + "/shut", 0o755)


@test
def many_files():
    path = folder({})
    for d in range(100):
        os.mkdir("%s/%03d" % (path, d))
        for f in range(1000):
            os.close(os.open("%s/%03d/%03d.txt" % (path, d, f), os.O_CREAT | os.O_WRONLY))
    repo_folder.write(path, "000/000.txt", "hello\n")
    v = listing(path)
    assert len(v["files"]) + len(v["left_out"]) == 100000 and 0 < v["tokens"] <= v["budget"]
    assert all(f["why"] == "over the budget" for f in v["left_out"])
    err = run("repo", path)[1]
    assert " more\n" in err
    shutil.rmtree(path)


@test
def rules_as_git_reads_them():
    if not GIT:
        print("SKIP the comparison of .gitignore with git: no git")
        return
    path = os.path.join(temp.name, "random")
    for files in repo_folder.cases(int(os.environ.get("CASES", 40)), int(os.environ.get("SEED", 1))):
        repo_folder.make(path, files)
        v = listing(path, "--repo-budget", "1000000")
        found, want = {f["path"] for f in v["files"] + v["left_out"]}, {shown(p) for p in repo_folder.git_list(path)}
        assert found == want, (sorted(found - want), sorted(want - found), {p: t for p, t in files.items() if "ignore" in p})


failed = 0
for t in tests:
    try:
        t()
    except Exception as e:
        failed += 1
        print("FAILED: %s: %s: %s" % (t.__name__, type(e).__name__, e))
print("%d passed, %d failed" % (len(tests) - failed, failed))
sys.exit(1 if failed else 0)
