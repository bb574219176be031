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

MAX_LENGTH = 20_000  # characters; the longest in practice (windowed attention) stay under 1,000
_MAX_INTEGER = 2**63 - 1
_MAX_EXPONENT = 16

_SYMBOL_NAME = re.compile(r"[a-z]{1,8}[0-9]{1,10}")  # s77, u0, zuf3
_ASSUMPTIONS = frozenset({"integer", "positive", "nonnegative", "nonzero", "negative", "real", "zero"})
_POWERS = frozenset({"Pow", "PowByNatural"})
_FUNCTIONS = {
    *("Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing"),
    *("IntTrueDiv", "ToFloat", "TruncToInt", "CeilToInt", "FloorToInt", "RoundToInt", "Identity", "Where"),
    *("Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"),
    *("Eq", "Ne", "Ge", "Le", "Gt", "Lt", "And", "Or", "Not"),
}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)


def plain_expression(text: str) -> str:
    """`text`, rewritten from its checked syntax tree.

    Raises:
        ValueError: it holds anything but symbols, integers and the arithmetic listed above.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an expression of {len(text)} characters")
    try:
        tree = ast.parse(text, mode="eval").body
        if _is_plain(tree):
            return ast.unparse(tree)
    except (SyntaxError, RecursionError, MemoryError):
        pass
    raise ValueError(f"{text[:80]!r} is not plain arithmetic on symbols and integers")


def _is_plain(node: ast.expr, *, inside_power: bool = False) -> bool:
    match node:
        case ast.Constant(value=value):
            return type(value) is bool or (type(value) is int and value <= _MAX_INTEGER)
        case ast.Name(id=name):
            return name in ("true", "false") or _SYMBOL_NAME.fullmatch(name) is not None
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return _is_plain(node.operand, inside_power=inside_power)
        case ast.BinOp() if isinstance(node.op, _OPERATORS):
            return all(_is_plain(side, inside_power=inside_power) for side in (node.left, node.right))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return _SYMBOL_NAME.fullmatch(name) is not None and all(map(_is_assumption, node.keywords))
        case ast.Call(func=ast.Name(id="Integer"), args=[_], keywords=[]):
            return _integer(node) is not None
        case ast.Call(func=ast.Name(id="Rational"), args=[numerator, denominator], keywords=[]):
            return _integer(numerator) is not None and _integer(denominator) not in (None, 0)
        case ast.Call(func=ast.Name(id=name), args=[base, power], keywords=[]) if name in _POWERS:
            # a tower of powers of constants would be computed digit by digit
            exponent = _integer(power)
            small = exponent is not None and abs(exponent) <= _MAX_EXPONENT
            return small and not inside_power and _is_plain(base, inside_power=True)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return all(_is_plain(argument, inside_power=inside_power) for argument in node.args)
    return False


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
