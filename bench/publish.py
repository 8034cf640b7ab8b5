"""Copy what `make bench` measured into docs/performance.md: tables between their marks, and the picture."""

from __future__ import annotations

import re
import shutil

from bench.tables import OUT

DOCS = OUT.parent / "docs"
PICTURE = "performance-scaling.svg"


def publish() -> None:
    """Replace every block of the page that the last run wrote; what it did not measure stays."""
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    measured = (OUT / "performance.md").read_text(encoding="utf-8")
    for block, name in re.findall(r"(<!-- (\w+):start -->.*?<!-- \2:end -->)", measured, flags=re.DOTALL):
        text, found = re.subn(
            f"<!-- {name}:start -->.*?<!-- {name}:end -->", lambda _, block=block: block, text, flags=re.DOTALL
        )
        print(f"{name}: {'replaced' if found else 'not in the page'}")
    page.write_text(text, encoding="utf-8")
    if (OUT / PICTURE).exists():
        shutil.copy(OUT / PICTURE, DOCS / "images" / PICTURE)
        print(f"{PICTURE}: copied")


if __name__ == "__main__":
    publish()
