"""The pages that tests follow word by word, README.md and the tutorials, and the blocks of code in them.

What stands behind a block's language says what is done with it, in a folder of the page's own:

* `file=NAME`        it is written to that file, before anything of the page runs
* `run=own`          Python, or lines of a shell, run in the test's process, in the order of the page
* `run=shell`        run by bash, in the same order
* `run=federation`   run by bash in `make e2e`, with `run=end` at the end: it starts processes that stay
* nothing            of a shell, each line by itself, in a folder of its own
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["PAGES", "ROOT", "WAYS", "Block", "blocks_of", "name_of", "named_blocks", "write_files"]

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md")))
WAYS: Final = ("run=own", "run=shell", "run=federation", "run=end")


class Block(NamedTuple):
    """One block of code: its language, what stands behind it, its lines."""

    language: str
    attribute: str
    text: str


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return [Block(*found) for found in re.findall(r"```(\w*) ?([^\n]*)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]


def named_blocks(page: Path) -> dict[str, str]:
    """The text of each block that has an attribute; of several with one attribute, the last."""
    return {block.attribute: block.text for block in blocks_of(page) if block.attribute}


def write_files(page: Path, folder: Path) -> None:
    """Write the files of a page."""
    for attribute, text in named_blocks(page).items():
        if attribute.startswith("file="):
            (folder / attribute.removeprefix("file=")).write_text(text, encoding="utf-8")
