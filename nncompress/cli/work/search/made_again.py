"""What makes the result of `optimize` again: recipes beside it, and the commands to type."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from nncompress.files.atomic import replacing
from nncompress.options import flag_of
from nncompress.passes import Pass
from nncompress.recipe import write_recipe
from nncompress.search.finetune import in_two


def recipe_files(result: Path, after: bool = True) -> list[Path]:
    """Beside `result`: the recipe, and that of what comes after a training."""
    return [result.with_suffix(".toml"), *([result.with_suffix(".after.toml")] if after else [])]


def write(
    result: Path,
    recipe: tuple[Pass, ...],
    trained: dict[str, Any] | None,
    *,
    original: Path,
    fit: str,
    loading: dict[str, Any],
    settings: dict[str, Any],
    target: str | None,
    reads: tuple[Path, ...],
) -> tuple[list[Path], list[str]]:
    """Write the recipe, in two where it is trained in between.

    Args:
        trained: the settings of the training; None: there is none.
        fit: the data that passes are fitted to, and trained on.
        loading: options of the command that say how files are opened.
        settings: of the search: limit, seed.

    Returns: the recipe files; the commands, in order.
    """

    def opening(*keys: str) -> list[str]:
        return [word for key in keys if loading[key] for word in (flag_of(key), loading[key])]

    trust = ["--trust-pickle"] if loading["trust_pickle"] else []
    normalized, opened = opening("normalize"), [*opening("arch", "weights_key", "input"), *trust]
    data, seed = ["--data", fit], ["--seed", str(settings["seed"])]
    fitted = [*data, "--limit", str(settings["limit"]), *seed, *(["--target", target] if target else [])]
    parts: tuple[tuple[Pass, ...], ...] = (recipe,) if trained is None else in_two(recipe)
    files = recipe_files(result, len(parts) > 1 and bool(parts[1]))
    cut, done = (str(result.with_suffix(f".{each}.pt2")) for each in ("cut", "trained"))
    first = cut if trained is not None else str(result)
    steps = [["compress", original, "--recipe", files[0], *fitted, *normalized, *opened, "-o", first]]
    if trained is not None:
        flags = [
            word
            for key, value in trained.items()
            for word in ((flag_of(key),) if value is True else (flag_of(key), value))
        ]
        end = done if parts[1] or target else str(result)
        learning = [*data, *seed, *flags, "--teacher", original, *opened, *normalized]
        steps.append(["train", cut, *learning, "-o", end])
        if parts[1]:
            steps.append(["compress", done, "--recipe", files[1], *fitted, *normalized, "-o", result])
        elif target:
            steps.append(["export", done, "--target", target, "-o", result])
    commands = [shlex.join(["nncompress", *map(str, step)]) for step in steps]
    comment = "".join(f"# {line}\n" for command in commands for line in command.splitlines()) + "\n"
    for file, part in zip(files, parts):
        with replacing(file, reads) as temporary:
            write_recipe(temporary, part, comment)
    return files, commands
