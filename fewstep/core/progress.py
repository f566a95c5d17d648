"""Progress bars on the terminal, which leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(name: str | None, total: float) -> Iterator[Callable[[], None] | None]:
    """A bar on standard error while the block runs, and the function that advances it by one; None without a name."""
    if name is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)
