"""README, docs and CONTRIBUTING, and the code that is in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = tuple(f"docs/{name}.md" for name in ("samplers", "likelihoods", "data", "objectives", "models", "design"))
PAGES = ("README.md", *DOCS, "CONTRIBUTING.md")


def text(page):
    return (ROOT / page).read_text()


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)
