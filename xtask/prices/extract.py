"""The table of prices from the wheel of genai-prices (MIT): `extract.py WHEEL OUT`.

Reads the package's data as text and runs nothing of it. One row for each model, period and tier; what this table has no
column for (images, characters, searches) makes a row say so, and a model that has nothing else no row.
"""

import ast
import re
import sys
import zipfile

WHEEL, OUT = sys.argv[1:3]
# As policy names them, where the package has another name; of others there is no endpoint to know them by.
PROVIDERS = {
    "anthropic": ["anthropic"], "aws": ["bedrock"], "azure": ["azure"], "cerebras": ["cerebras"], "cohere": ["cohere"],
    "deepseek": ["deepseek"], "fireworks": ["fireworks"], "google": ["gemini", "vertex"], "groq": ["groq"],
    "minimax": ["minimax"], "mistral": ["mistral"], "moonshotai": ["moonshot"], "openai": ["openai"],
    "openrouter": ["openrouter"], "perplexity": ["perplexity"], "together": ["together"], "x-ai": ["xai"], "zai": ["zhipu"],
}
COLUMNS = ["input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok", "output_reasoning_mtok"]
# Of rows that have a price for sound, these follow the request's.
SOUND = ["input_audio_mtok", "cache_audio_read_mtok", "output_audio_mtok"]
KNOWN = set(COLUMNS) | set(SOUND) | {"requests_kcount", "_"}


def value(node):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value(part) for part in node.elts]
    if isinstance(node, ast.Dict):
        return {value(k): value(v) for k, v in zip(node.keys, node.values)}
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        if name == "Decimal":
            return str(node.args[0].value)
        if name == "date":
            return "%04d-%02d-%02d" % tuple(value(part) for part in node.args)
        return {"_": name, **{k.arg: value(k.value) for k in node.keywords}}
    return None


def match(clause):
    """Alternatives, each of conditions that all hold; None for what a table can't say."""
    kind = clause["_"]
    simple = {"ClauseEquals": ("=", "equals"), "ClauseStartsWith": ("^", "starts_with"),
              "ClauseContains": ("~", "contains"), "ClauseEndsWith": ("$", "ends_with")}
    if kind in simple:
        mark, key = simple[kind]
        text = clause[key].lower()
        return None if re.search(r"[\s&]", text) else [mark + text]
    if kind == "ClauseOr":
        return [one for part in clause["or_"] for one in match(part) or []] or None
    if kind == "ClauseAnd":
        parts = [match(part) for part in clause["and_"]]
        return ["&".join(part[0] for part in parts)] if all(p and len(p) == 1 for p in parts) else None
    return None


def dollars(text):
    """Dollars for a million tokens, in trillionths of a dollar for one: exact."""
    whole, _, part = text.partition(".")
    return str(int(whole + part.ljust(6, "0")[:6]))


def price(of, tier):
    """One of the package's prices above a number of input tokens."""
    if isinstance(of, dict):
        above = [t["price"] for t in of["tiers"] if t["start"] <= tier]
        return above[-1] if above else of["base"]
    return of


def periods(prices):
    if isinstance(prices, dict):
        return [("", prices)]
    found = []
    for one in prices:
        constraint = one.get("constraint")
        if constraint is None:
            found.append(("", one["prices"]))
        elif constraint["_"] == "StartDateConstraint":
            found.append((constraint["start_date"], one["prices"]))
        # Of prices by the time of day, what is cheaper at times is left out.
        elif not found:
            found.append(("", one["prices"]))
        else:
            date, before = found[-1]
            dearer = max((before, one["prices"]), key=lambda p: float(price(p.get("output_mtok") or "0", 0)))
            found[-1] = (date, dearer)
    return found


def rows(providers, version):
    for provider in providers:
        source = (provider.get("pricing_urls") or [""])[0].removeprefix("https://").replace(" ", "")
        for name, model in ((n, m) for n in PROVIDERS.get(provider["id"], []) for m in provider["models"]):
            matches = match(model["match"])
            if matches is None:
                continue
            for date, prices in periods(model["prices"]):
                prices = {k: v for k, v in prices.items() if v is not None}
                starts = {0} | {t["start"] for v in prices.values() if isinstance(v, dict) for t in v["tiers"]}
                for tier in sorted(starts):
                    cells = [dollars(price(prices[c], tier)) if c in prices else "-" for c in COLUMNS]
                    request = dollars_of_requests(price(prices["requests_kcount"], tier)) if "requests_kcount" in prices else "-"
                    sound = [dollars(price(prices[c], tier)) if c in prices else "-" for c in SOUND]
                    if all(cell == "-" for cell in cells + sound + [request]):
                        continue
                    sound = sound if any(cell != "-" for cell in sound) else []
                    more = "+" if set(prices) - KNOWN - {"cache_write_1h_mtok", "web_searches_kcount"} else ""
                    yield [name, " ".join(matches), date or "-", str(tier), *cells, request, *sound, source + more]


def dollars_of_requests(text):
    """Dollars for a thousand requests, in trillionths of a dollar for one."""
    return str(round(float(text) * 1_000_000_000))


wheel = zipfile.ZipFile(WHEEL)
version = re.search(r"genai_prices-([\d.]+)-", WHEEL).group(1)
tree = ast.parse(wheel.read("genai_prices/data.py"))
providers = next(value(node.value) for node in tree.body if isinstance(node, ast.AnnAssign))
with open(OUT, "w", encoding="utf-8") as out:
    out.write(f"# Prices of models, from genai-prices {version} (MIT licence, Pydantic Services Inc.), made by `cargo xtask prices`.\n")
    out.write("# provider, models, from, above input tokens; 10^-12 USD for a token of input, cached input, input that is cached,\n")
    out.write("# output, reasoning (- for: as input, as input, as output; or not known), and for a request; where there are any, for a\n")
    out.write("# token of sound of input, cached input, output; source (+: there is more to it that has no column here).\n")
    for row in rows(providers, version):
        out.write("\t".join(row) + "\n")
