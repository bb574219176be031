"""What makes the result of `optimize` again: recipes beside it, and the commands to type."""

from __future__ import annotations

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
    how = {
        f"--{key.replace('_', '-')}": loading[key] for key in ("normalize", "arch", "weights_key", "input")
    }
    opened = "".join(f" {flag} '{value}'" for flag, value in how.items() if value)
    opened += " --trust-pickle" if loading["trust_pickle"] else ""
    normalized = f" --normalize '{loading['normalize']}'" if loading["normalize"] else ""
    data, seed = f"--data '{fit}'", f"--seed {settings['seed']}"
    fitted = f"{data} --limit {settings['limit']} {seed}" + (f" --target {target}" if target else "")
    parts: tuple[tuple[Pass, ...], ...] = (recipe,) if trained is None else in_two(recipe)
    files = recipe_files(result, len(parts) > 1 and bool(parts[1]))
    cut, done = (str(result.with_suffix(f".{each}.pt2")) for each in ("cut", "trained"))
    first = cut if trained is not None else str(result)
    commands = [f"nncompress compress {original} --recipe {files[0]} {fitted}{opened} -o {first}"]
    if trained is not None:
        flags = " ".join(f"{flag_of(key)} {value}" for key, value in trained.items())
        end = done if parts[1] or target else str(result)
        teacher = f"--teacher {original}" + opened.replace(normalized, "")
        commands.append(f"nncompress train {cut} {data} {seed} {flags} {teacher}{normalized} -o {end}")
        if parts[1]:
            commands.append(
                f"nncompress compress {done} --recipe {files[1]} {fitted}{normalized} -o {result}"
            )
        elif target:
            commands.append(f"nncompress export {done} --target {target} -o {result}")
    comment = "".join(f"# {command}\n" for command in commands) + "\n"
    for file, part in zip(files, parts):
        with replacing(file, reads) as temporary:
            write_recipe(temporary, part, comment)
    return files, commands
