"""Symbolic sizes in a `.pt2`: only plain arithmetic on symbols and integers passes.

`torch.export.load` hands every `expr_str` to `sympy.sympify`, which ends in `eval`. So an expression is
parsed here into a syntax tree, every node of the tree must be one of the few kinds below, and the text that
goes on to torch is written anew from that tree:

    Symbol('s77', positive=True, integer=True)      a size
    Integer(2), 7, -1, Rational(1, 2)               64-bit numbers
    Add(..), Mul(..), Max(..), FloorDiv(..), a + b  arithmetic on those, `Pow` only with a small exponent
    GreaterThan(..), And(..), true                  comparisons
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from math import prod

# What evaluates them later (sympy) takes time exponential in some of these. The longest in practice (windowed
# attention) have under 1,000 characters.
MAX_LENGTH = 4_000  # characters
_MAX_DEPTH = 24
_MAX_TERMS = 64  # of the sum that is left when all products and powers are multiplied out
_MAX_EXTREMA = 12  # operands of Max and Min, all together: they are compared pair by pair, case by case
_MAX_CONDITIONS = 24  # comparisons and their connectives
_MAX_INTEGER = 2**63 - 1
_MAX_EXPONENT = 16

_SYMBOL_NAME = re.compile(r"[a-z]{1,8}[0-9]{1,10}")  # s77, u0, zuf3
_ASSUMPTIONS = frozenset({"integer", "positive", "nonnegative", "nonzero", "negative", "real", "zero"})
_POWERS = frozenset({"Pow", "PowByNatural"})
_EXTREMA = frozenset({"Max", "Min"})
_CONDITIONS = {
    *("Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"),
    *("Eq", "Ne", "Ge", "Le", "Gt", "Lt", "And", "Or", "Not", "Where"),
}
_ATOMIC = {  # what is inside them is not multiplied out with what is outside
    *("Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "IntTrueDiv"),
    *("ToFloat", "TruncToInt", "CeilToInt", "FloorToInt", "RoundToInt"),
}


class TooLarge(ValueError):
    """Plain arithmetic, but more of it than any model has."""


def plain_expression(text: str) -> str:
    """`text`, rewritten from its checked syntax tree.

    Raises:
        ValueError: it holds anything but symbols, integers and the arithmetic listed above.
        TooLarge: it does not, and is too large to be evaluated in bounded time.
    """
    if len(text) > MAX_LENGTH:
        raise TooLarge(f"has {len(text)} characters, at most {MAX_LENGTH} are read")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError):  # ValueError: a null byte
        raise ValueError(_strange(text)) from None
    size = _Size()
    size.terms(tree, depth=0)
    if size.strange:
        raise ValueError(_strange(text))
    if size.large:
        raise TooLarge(f"{text[:80]!r}… is too large to be evaluated: {size.large}")
    return ast.unparse(tree)


def _strange(text: str) -> str:
    return f"{text[:80]!r} is not plain arithmetic on symbols and integers"


class _Size:
    """Walks a syntax tree; says whether a node is none of the admitted kinds, or the whole too large.

    Attributes:
        strange: a node is none of the admitted kinds.
        large: which bound it is beyond; "" if none.
    """

    def __init__(self) -> None:
        self.strange, self.large = False, ""
        self._extrema = self._conditions = 0

    def terms(self, node: ast.expr, depth: int, *, inside_power: bool = False) -> int:
        """The terms of the sum that `node` is when multiplied out, at most one more than is admitted."""
        if self.strange or self.large:
            return 1
        if depth > _MAX_DEPTH:
            self.large = f"nested more than {_MAX_DEPTH} deep"
            return 1
        count = self._terms(node, lambda inner: self.terms(inner, depth + 1, inside_power=inside_power))
        if count is None:
            count = self._power(node, depth, inside_power)
        if count > _MAX_TERMS:
            self.large = f"a sum of more than {_MAX_TERMS} terms"
        return min(count, _MAX_TERMS + 1)

    def _terms(self, node: ast.expr, inside: Callable[[ast.expr], int]) -> int | None:
        match node:
            case ast.Constant(value=value) if type(value) is bool or (
                type(value) is int and value <= _MAX_INTEGER
            ):
                return 1
            case ast.Name(id=name) if name in ("true", "false") or _SYMBOL_NAME.fullmatch(name):
                return 1
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                return inside(node.operand)
            case ast.BinOp(op=ast.Add() | ast.Sub()):
                return inside(node.left) + inside(node.right)
            case ast.BinOp(op=ast.Mult()):
                return inside(node.left) * inside(node.right)
            case ast.BinOp(op=ast.FloorDiv() | ast.Mod()):
                return max(inside(node.left), inside(node.right))
            case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
                self.strange |= _SYMBOL_NAME.fullmatch(name) is None
                self.strange |= not all(map(_is_assumption, node.keywords))
                return 1
            case ast.Call(func=ast.Name(id="Integer"), args=[_], keywords=[]):
                self.strange |= _integer(node) is None
                return 1
            case ast.Call(func=ast.Name(id="Rational"), args=[numerator, denominator], keywords=[]):
                self.strange |= _integer(numerator) is None or _integer(denominator) in (None, 0)
                return 1
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name not in _POWERS:
                return self._call(name, [inside(argument) for argument in node.args])
        return None

    def _call(self, name: str, counts: list[int]) -> int:
        if name == "Add":
            return sum(counts)
        if name == "Mul":
            return prod(counts)
        if name == "Identity" or name in _ATOMIC:
            return max(counts, default=1)
        if name in _EXTREMA:
            self._extrema += len(counts)
            if self._extrema > _MAX_EXTREMA:
                self.large = f"more than {_MAX_EXTREMA} operands of Max and Min"
        elif name in _CONDITIONS:
            self._conditions += len(counts)
            if self._conditions > _MAX_CONDITIONS:
                self.large = f"more than {_MAX_CONDITIONS} operands of comparisons"
        else:
            self.strange = True
        return max(counts, default=1)

    def _power(self, node: ast.expr, depth: int, inside_power: bool) -> int:
        """A tower of powers of constants would be computed digit by digit."""
        match node:
            case ast.Call(func=ast.Name(id=name), args=[base, power], keywords=[]) if name in _POWERS:
                exponent = _integer(power)
                if exponent is not None and abs(exponent) <= _MAX_EXPONENT and not inside_power:
                    count = self.terms(base, depth + 1, inside_power=True)
                    return int(min(count ** max(abs(exponent), 1), _MAX_TERMS + 1))
        self.strange = True
        return 1


def _is_assumption(keyword: ast.keyword) -> bool:
    match keyword.value:
        case ast.Constant(value=True):
            return keyword.arg in _ASSUMPTIONS
    return False


def _integer(node: ast.expr) -> int | None:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            magnitude = _integer(operand)
            return None if magnitude is None else -magnitude
        case ast.Call(func=ast.Name(id="Integer"), args=[argument], keywords=[]):
            return _integer(argument)
        case ast.Constant(value=value) if type(value) is int and value <= _MAX_INTEGER:
            return value
    return None
