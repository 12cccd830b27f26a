"""`calculator`: exact decimal arithmetic on an expression. It parses what it knows and evaluates nothing else."""

import ast
import operator
import re
from collections.abc import Callable
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.agents.tools.model import Call, Output, Tool, ToolError

_MAX_LENGTH: Final = 400
_MAX_NODES: Final = 200
_MAX_POWER: Final = 1000
_SIGNS: Final = str.maketrans({"×": "*", "÷": "/", "−": "-", "^": "**", "，": ",", "（": "(", "）": ")", "％": "%"})  # fmt: skip
# 50 digits are more than money needs; traps turn every surprise into an error that is told.
_CONTEXT: Final = Context(prec=50, Emax=5000, Emin=-5000, traps=[DivisionByZero, InvalidOperation, Overflow])


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An arithmetic expression."""

    expression: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=_MAX_LENGTH,
            description="Numbers, + - * / // % **, parentheses, abs, min, max, round, sqrt.",
        ),
    ]


def calculate(expression: str) -> Decimal:
    """The value of an expression.

    Raises:
        ToolError: it is not arithmetic, too large, or has no value.
    """
    text = _plain(expression)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("this is not an arithmetic expression") from None
    if sum(1 for _ in ast.walk(tree)) > _MAX_NODES:
        raise ToolError("the expression is too long")
    try:
        with localcontext(_CONTEXT):
            return _value(tree.body, text)
    except DivisionByZero:
        raise ToolError("division by zero") from None
    except InvalidOperation:
        raise ToolError("this has no value") from None
    except Overflow:
        raise ToolError("the result is too large") from None


def _plain(expression: str) -> str:
    """Thousands separators and percent signs as Python reads them: `1,200 * 5%` → `1200 * (5/100)`."""
    text = expression.translate(_SIGNS).strip().rstrip("=").strip()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"(\d+(?:\.\d+)?)\s*%(?!\s*[\d(])", r"(\1/100)", text)


def _value(node: ast.expr, text: str) -> Decimal:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            # As it is written: a float would already have lost digits.
            return +Decimal((ast.get_source_segment(text, node) or "nan").replace("_", ""))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, text)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left, text), _value(right, text))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _function(name, [_value(argument, text) for argument in arguments])
    raise ToolError(
        "only decimal numbers, + - * / // % **, parentheses, abs, min, max, round and sqrt are allowed"
    )


def _power(left: Decimal, right: Decimal) -> Decimal:
    if abs(right) > _MAX_POWER:
        raise ToolError(f"powers above {_MAX_POWER} are not computed")
    return left**right


def _floor(left: Decimal, right: Decimal) -> Decimal:
    return (left / right).to_integral_value("ROUND_FLOOR")


_OPERATIONS: Final[dict[type[ast.operator], Callable[[Decimal, Decimal], Decimal]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: _floor,
    ast.Mod: lambda left, right: left - right * _floor(left, right),
    ast.Pow: _power,
}


def _function(name: str, values: list[Decimal]) -> Decimal:
    match name, values:
        case "abs", [value]:
            return abs(value)
        case "sqrt", [value]:
            return value.sqrt()
        case "min", [_, *_]:
            return min(values)
        case "max", [_, *_]:
            return max(values)
        case "round", [value]:
            return value.to_integral_value("ROUND_HALF_EVEN")
        case "round", [value, places] if places == places.to_integral_value() and 0 <= places <= 20:
            return value.quantize(Decimal(1).scaleb(-int(places)), "ROUND_HALF_EVEN")
    raise ToolError("only abs, min, max, round and sqrt are known, with the usual arguments")


def shown(value: Decimal) -> str:
    """Without an exponent and trailing zeros where that is readable."""
    plain = value.normalize(Context(prec=28, Emax=5000, Emin=-5000))
    return f"{plain:f}" if abs(plain.adjusted()) <= 40 else str(plain)


async def _call(_: Call, arguments: Arguments) -> Output:
    value = calculate(arguments.expression)
    return Output(msgspec.json.encode({"expression": arguments.expression, "value": shown(value)}).decode())


CALCULATOR: Final = Tool(
    name="calculator",
    description="Calculates an arithmetic expression exactly, in decimals.",
    arguments=Arguments,
    side_effect="pure",
    call=_call,
    seconds=2.0,
)
