"""Copy what `make bench` measured into the pages of docs: tables between their marks, and pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence

from bench.tables import OUT

DOCS = OUT.parent / "docs"
PICTURES = {
    "performance.md": "performance-scaling.svg",
    "quality.md": "quality-curves.svg",
    "models.md": None,
    "onnx.md": None,
    "deploy.md": None,
    "fine-tune.md": None,
}  # by page


def marked(blocks: Mapping[str, Sequence[str]]) -> str:
    """Return blocks of lines, each between the marks that a page has for it."""
    return "\n".join(
        "\n".join((f"<!-- {name}:start -->", *b, f"<!-- {name}:end -->", "")) for name, b in blocks.items()
    )


def publish(name: str) -> None:
    """Replace every block of a page that the last run wrote; what it did not measure stays."""
    measured, picture = OUT / name, PICTURES[name]
    if measured.exists():
        text = (DOCS / name).read_text(encoding="utf-8")
        written = measured.read_text(encoding="utf-8")
        for block, mark in re.findall(r"(<!-- (\w+):start -->.*?<!-- \2:end -->)", written, flags=re.DOTALL):
            text, found = re.subn(
                f"<!-- {mark}:start -->.*?<!-- {mark}:end -->", lambda _, block=block: block, text, flags=re.DOTALL
            )
            print(f"{name}, {mark}: {'replaced' if found else 'not in the page'}")
        (DOCS / name).write_text(text, encoding="utf-8")
    if picture is not None and (OUT / picture).exists():
        shutil.copy(OUT / picture, DOCS / "images" / picture)
        print(f"{picture}: copied")


if __name__ == "__main__":
    for page in PICTURES:
        publish(page)
