"""An option that takes one value, given twice: the parser takes the last and says nothing of the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nncompress.errors import UsageError

_TOGETHER = {"--input": "say them together, with commas between: --input x:Bx40,sr=16000"}


def refuse_repeats(group: Any) -> None:
    """Let every command of the parsed tree refuse them, in place."""
    for command in group.commands.values():
        command.make_parser = _refusing(command.make_parser)


def _refusing(make_parser: Any) -> Any:
    def made(context: Any) -> Any:
        parser = make_parser(context)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, rest, order = parse(args)
            for parameter, times in Counter(order).items():
                takes_more = parameter.multiple if hasattr(parameter, "multiple") else parameter.nargs != 1
                if times > 1 and not takes_more and not getattr(parameter, "is_flag", False):
                    name = parameter.opts[0]
                    raise UsageError(
                        f"{name} is given {times} times, and takes one value",
                        remedy=_TOGETHER.get(name, "leave all but one out"),
                    )
            return values, rest, order

        parser.parse_args = parse_args
        return parser

    return made
