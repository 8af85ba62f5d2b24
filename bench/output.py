"""Tables, progress and JSON files, for a terminal as for a pipe."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NARROWEST = 120


def console(*, stderr: bool = False, at_least: int = _NARROWEST) -> Console:
    """Make a console that is at least so wide: a line that wraps is easier to read than squeezed cells."""
    from rich.console import Console

    width = max(Console(stderr=stderr).width, at_least)
    return Console(stderr=stderr, width=width, highlight=False)


def show(table: Table) -> None:
    """Print a table in full, however narrow the terminal."""
    needed = console(at_least=1000).measure(table).maximum
    console(at_least=needed).print(table)


def grid(columns: Mapping[str, str], rows: Iterable[Sequence[str]] = ()) -> Table:
    """Make a table from its columns, each with the side it aligns to ("left" or "right"), and its rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header, side in columns.items():
        table.add_column(header, justify="right" if side == "right" else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*map(Text, cells))  # as it stands: in markup, [i,j] would be a style
    return table


def markdown(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of the same table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join('--:' if side == 'right' else ':--' for side in columns.values())}|"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


@contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar on a terminal, and one line a step elsewhere; both on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda description: print(description, file=sys.stderr, flush=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Drawn at each step only: a thread that draws in between would take time from what is being measured.
    with Progress(*columns, console=out, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=steps)
        done = itertools.count()

        def on_step(description: str) -> None:
            bar.update(task, description=description, completed=next(done), refresh=True)

        yield on_step


def write_json(path: Path, content: Any) -> None:
    """Write figures to a file, with the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
