"""Opening what `torch.save` pickled, without running code.

A pickle is a program: it names functions and classes, and unpickling calls them. Here it is opened with
`torch.load(weights_only=True)`, and the few other names that are let through (torch's own `torch.nn` classes
among them) stand for inert stand-ins that only keep what they are given: no class of torch.nn is called or
gets state from the file. `module_records` then checks the recorded state and builds the real modules.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nncompress.errors import ModelFileError, UnsafeFileError
from nncompress.files.pickle_scan import PickleScan, scan_file
from nncompress.loading.pickle.module_attributes import Disagrees
from nncompress.loading.pickle.module_records import ACTIVATIONS, SAFE_CLASSES, Record, module_from_record
from nncompress.loading.stored_zip import check_members
from nncompress.user_code import import_from_here

# What checkpoints carry beside their weights (numbers from numpy, settings). Recorded and never looked at.
_BYSTANDERS = {
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("argparse.Namespace", "collections.defaultdict", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("builtins.dict", "builtins.list", "builtins.int", "builtins.float", "builtins.slice", "builtins.range"),
    *("builtins.str", "builtins.tuple", "builtins.frozenset", "builtins.Ellipsis", "builtins.type"),
    *("collections.deque", "datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.timezone"),
}
# What the unpickler fills item by item has to be a container of the kind that it knows.
_CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *arguments: OrderedDict(),
    "collections.deque": lambda *arguments: [],
}
# where training scripts keep the weights inside a checkpoint, the first of these that is there
WEIGHT_KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "module", "weights"),
    *("ema", "model_ema", "state_dict_ema", "params"),
)
_MOST_DEEP = 3  # of keys under which a module is looked for


def read_pickle(path: str | Path, *, trust_pickle: bool = False) -> Any:
    """The object that `torch.save` wrote to `path`: a module, or a (nested) dict of tensors.

    Args:
        trust_pickle: where it needs classes that are not torch's own, import and run them.

    Raises:
        UnsafeFileError: it needs such classes (the message names them) or holds state that could carry code.
        ModelFileError: it is damaged, or was not written by `torch.save`.
    """
    path = Path(path)
    scan = _scanned(path)
    needed = _beyond_tensors(scan)
    foreign = needed - SAFE_CLASSES - ACTIVATIONS.keys() - _BYSTANDERS
    if foreign and not trust_pickle:
        raise _needs_code(path, foreign, scan.keys)
    if trust_pickle and needed:
        return _load_trusted(path)
    try:
        found = _load_inert(path, needed)
        return module_from_record(found) if isinstance(found, Record) else _with_modules(found, 0, {})
    except Disagrees as error:
        raise ModelFileError(
            f"{path} is damaged: a layer's attributes and weights do not belong together",
            got=str(error)[:600],
            remedy="save the model again",
        ) from error
    except ValueError as error:  # the recorded state is more than plain values
        raise UnsafeFileError(
            f"{path} is not loaded: its modules hold more than weights and settings",
            got=str(error),
            remedy="save its state_dict and give --arch; or, if you trust its origin, add --trust-pickle",
        ) from error


def _scanned(path: Path) -> PickleScan:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_members(archive, path)
        return scan_file(path)
    except Exception as error:  # a pickle can be malformed in every way
        raise _damaged(path, error) from error


def _beyond_tensors(scan: PickleScan) -> set[str]:
    """The names that a pickle wants beyond tensors, `module.qualname`."""
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    names = scan.names | {name.replace("__builtin__.", "builtins.", 1) for name in scan.names}
    return {n for n in names if n not in allowed and not n.startswith("__builtin__.")}


def _with_modules(found: Any, deep: int, known: dict[int, Any]) -> Any:
    """`found` with the modules in it built that lie under up to three keys of dicts."""
    if isinstance(found, Record) and found.of in SAFE_CLASSES:
        return module_from_record(found)
    if type(found) is not dict or deep == _MOST_DEEP:
        return found
    if id(found) not in known:
        known[id(found)] = {key: _with_modules(value, deep + 1, known) for key, value in found.items()}
    return known[id(found)]


def _load_inert(path: Path, needed: set[str]) -> Any:
    stand_ins: list[Any] = [(_CONTAINERS.get(name) or _stand_in(name), name) for name in sorted(needed)]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every opcode of a malformed pickle fails in its own way
        raise _damaged(path, error) from error


def _stand_in(name: str) -> type[Record]:
    """A class of its own for each name: the unpickler looks up objects by their class."""
    return type("Record", (Record,), {"of": name})


def _load_trusted(path: Path) -> Any:
    try:
        with import_from_here(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError, NameError) as error:
        raise ModelFileError(
            f"{path} needs classes that cannot be imported here",
            got=f"{type(error).__name__}: {error}",
            remedy="its class is of the script that saved it, which has it alone: save its state_dict there, "
            "and say --arch THAT_SCRIPT.py:CLASS here"
            if "__main__" in str(error)
            else "run where the model's package can be imported; or save, there, its state_dict alone",
        ) from error
    except Exception as error:  # the file's own code may raise anything
        raise _damaged(path, error) from error


def _needs_code(path: Path, names: set[str], keys: tuple[str, ...]) -> UnsafeFileError:
    """The refusal of a pickled module, or of a checkpoint with `keys`, whose weights need no code."""
    shown = sorted(names)
    listing = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
    if keys:
        key = next((repr(key) for key in WEIGHT_KEYS if key in keys), "KEY")
        of = "" if key != "KEY" else ", KEY being that of the weights"
        return UnsafeFileError(
            f"{path} needs code to load: beside its weights it holds objects of other classes than torch's",
            got=f"{listing}; keys {', '.join(map(repr, keys[:8]))}",
            expected="tensors, numbers and text",
            remedy="where those classes can be imported, save the weights alone: "
            f"torch.save(torch.load({str(path)!r}, weights_only=False)[{key}], 'weights.pt'){of} (of a "
            "module its .state_dict()), and give --arch file.py:factory; or, if you trust its origin, add "
            "--trust-pickle",
        )
    if any(name.startswith("torch._dynamo.") for name in names):
        return UnsafeFileError(
            f"{path} needs code to load: it was saved with what torch.compile put around it",
            got=listing,
            expected="modules of torch.nn, or a state_dict",
            remedy="save the module without: torch.save(model._orig_mod, 'model.pt'); or, if you trust its "
            "origin, add --trust-pickle (no compiler is needed)",
        )
    return UnsafeFileError(
        f"{path} needs code to load: it is a pickle of classes that are not torch's own",
        got=listing,
        expected="modules of torch.nn, or a state_dict",
        remedy="save model.state_dict() and give --arch file.py:factory; or save a torch.export of it; "
        "or, if you trust its origin, add --trust-pickle",
    )


def _damaged(path: Path, error: Exception) -> ModelFileError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    kind = (
        "is damaged"
        if isinstance(error, EOFError | ValueError | pickle.UnpicklingError)
        else "cannot be read"
    )
    return ModelFileError(
        f"{path} {kind}",
        got=reason[:300],
        expected="a file written by torch.save",
        remedy="copy or save the file again",
    )


def describe(found: Any) -> str:
    """What an unpickled object is, for a message."""
    if isinstance(found, dict):
        keys = ", ".join(map(repr, list(found)[:6]))
        return f"a dict with the keys {keys}" if keys else "a dict without keys"
    return f"a {found.of if isinstance(found, Record) else type(found).__name__}"
