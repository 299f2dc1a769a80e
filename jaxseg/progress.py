"""Progress of long work: a bar on a terminal, a line now and then elsewhere, on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY_S = 15.0


@contextlib.contextmanager
def progress(title: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
    """`advance(n, note="")` moves the bar by n of `total`; `note` stands behind it (loss, images/s)."""
    if sys.stderr.isatty():
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times, TextColumn("{task.fields[note]}")
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, completed=start, note="")

            def advance(n: int, note: str | None = None) -> None:
                fields: dict[str, Any] = {} if note is None else {"note": note}
                bar.update(task, advance=n, **fields)

            yield advance
        return

    done, begun, shown, last = start, time.monotonic(), time.monotonic(), ""

    def advance_plain(n: int, note: str | None = None) -> None:
        nonlocal done, shown, last
        done, last, now = done + n, last if note is None else note, time.monotonic()
        if now - shown >= _EVERY_S or (done == total and now - begun >= _EVERY_S):
            left = (now - begun) / max(done - start, 1) * (total - done)
            print(f"{title}: {done} of {total}, {now - begun:.0f} s, {left:.0f} s left  {last}", file=sys.stderr, flush=True)
            shown = now

    yield advance_plain
