"""The recipes in the package: `fewstep train digits` trains what `fs.load("digits")` opens."""

from __future__ import annotations

from pathlib import Path

from fewstep.core.errors import suggest

FOLDER = Path(__file__).resolve().parents[1] / "recipes"


def recipe_names() -> tuple[str, ...]:
    """Every recipe in the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe: the one given or, if it does not exist, the one of that name in the package.

    A name may be written as `digits` or as `recipes/digits.toml`. Raises ValueError for an unknown name; a path that is
    neither is left to the reader of the file.
    """
    path = Path(recipe)
    if path.is_file() or str(path.parent) not in (".", FOLDER.name):
        return path
    if path.stem in recipe_names():
        return FOLDER / f"{path.stem}.toml"
    if path.suffix == "" and not path.exists():
        raise suggest("recipe", str(recipe), recipe_names())
    return path
