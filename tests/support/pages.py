"""The commands that the pages of deploy/ tell people to give."""

import re
from pathlib import Path
from typing import Final

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"


def blocks(page: str, heading: str) -> list[str]:
    """Return the commands below a heading of a page, block by block."""
    text = (DEPLOY / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
