"""`--select`: conditions on the columns of a table, evaluated by Arrow.

Python's own parser reads the expression, which is then walked node by node and never executed; only the
operators and functions listed here exist, so a condition copied from anywhere is safe. `AND`, `OR`, `NOT` may
be in capitals.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ripple.config import suggest
from ripple.errors import CatalogueError, ConfigError

#: Characters of an expression; longer ones are a mistake, and would cost the parser much memory.
MAX_LENGTH = 4096

# Python operator -> Arrow compute function.
_COMPARE = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power"}
# Kleene logic: with a null on one side, `or` is still true when the other side is. `&` and `|` mean the same,
# as people write them for pandas.
_LOGIC = {ast.And: "and_kleene", ast.Or: "or_kleene", ast.BitAnd: "and_kleene", ast.BitOr: "or_kleene"}
#: Function -> Arrow function of one argument; `mag` is in `_called`.
_FUNCTIONS = {
    "abs": "abs",
    "sqrt": "sqrt",
    "exp": "exp",
    "log": "ln",
    "log10": "log10",
    "isnull": "is_null",
    "isnan": "is_nan",
    "isfinite": "is_finite",
}


def columns_of(expression: str) -> list[str]:
    """Names of the columns that an expression reads, sorted.

    Raises
    ------
    ConfigError
        The text cannot be read as an expression.
    """
    tree = _parse(expression)
    # The name of a called function is a Name node like that of a column.
    calls = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in calls})


def matching(table: pa.Table, expression: str) -> pa.ChunkedArray:
    """Which rows of a table satisfy an expression.

    Parameters
    ----------
    table
        Arrow table of N rows.
    expression
        For example `i_cModelMag < 22 and not (refExtendedness == 0 or abs(ra - 53) > 1)`. Functions:
        `mag(flux)` (AB magnitude of nJy), `abs sqrt exp log log10 isnull isnan isfinite`; `x in (1, 2)`.

    Returns
    -------
    mask
        N booleans without nulls; a comparison with a null is false.

    Raises
    ------
    ConfigError
        The text cannot be read as an expression, or uses something that is not listed.
    CatalogueError
        A column that does not exist, or whose type does not allow the operation.
    """
    tree = _parse(expression)
    missing = [name for name in columns_of(expression) if name not in table.column_names]
    if missing:
        names = table.column_names
        raise CatalogueError(
            f"--select: no column {missing[0]!r}{suggest(missing[0], names)}",
            hint=f"columns: {', '.join(names[:30])}{' ...' if len(names) > 30 else ''}",
        )
    try:
        mask = _value(tree.body, table)
        if not isinstance(mask, pa.ChunkedArray | pa.Array) or not pa.types.is_boolean(mask.type):
            # `22` or `i_mag + 1` is an expression, but selects nothing.
            raise ConfigError(f"--select: {expression!r} is not a condition on columns")
        # A row whose value is unknown is not selected.
        return pc.fill_null(mask, False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as err:
        raise CatalogueError(f"--select: {expression!r}: {' '.join(str(err).split())[:200]}") from None
    except RecursionError:
        raise ConfigError("--select: the expression is nested too deeply") from None


def _parse(expression: str) -> ast.Expression:
    if len(expression) > MAX_LENGTH:
        raise ConfigError(
            f"--select: the expression has {len(expression)} characters",
            hint=f"at most {MAX_LENGTH} are allowed",
        )
    # SQL's `=`, which Python would only call a syntax error.
    if re.search(r"(?<![<>=!])=(?!=)", expression):
        raise ConfigError(f"--select: {expression!r} uses a single =", hint="equality is written ==")
    try:
        return ast.parse(_lower_words(expression), mode="eval")
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as err:
        what = err.msg if isinstance(err, SyntaxError) else str(err)
        raise ConfigError(f"--select: {expression!r} cannot be read as an expression: {what}") from None


def _lower_words(expression: str) -> str:
    """`AND OR NOT IN` in lower case, strings untouched."""
    # Joined to one line: in YAML, a long expression may run over several.
    tokens = tokenize.generate_tokens(io.StringIO(" ".join(expression.split())).readline)
    words = {"AND", "OR", "NOT", "IN"}
    return tokenize.untokenize(
        (t.type, t.string.lower() if t.type == tokenize.NAME and t.string in words else t.string)
        for t in tokens
    ).strip()


def _value(node: ast.expr, table: pa.Table) -> Any:
    """The Arrow value of a node: a column, a scalar or an array of booleans."""
    match node:
        case ast.Name(id=name):
            return table[name]
        case ast.Constant(value=value):
            return _constant(value)
        case ast.BoolOp(op=op, values=values):
            return _fold(_LOGIC[type(op)], [_value(v, table) for v in values])
        case ast.BinOp(op=op, left=left, right=right):
            return _binary(op, _value(left, table), _value(right, table))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return pc.negate(_value(operand, table))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, table)
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            return pc.invert(_value(operand, table))
        case ast.Compare(left=left, ops=ops, comparators=others):
            # `18 < mag < 22` is one node with two operators.
            sides = [left, *others]
            pairs = zip(sides[:-1], ops, sides[1:], strict=True)
            return _fold("and_kleene", [_compared(a, op, b, table) for a, op, b in pairs])
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            return _called(name, _value(argument, table))
    # Attributes, subscripts, lambdas and calls with several arguments all end here.
    raise ConfigError(f"--select: {ast.unparse(node)!r} is not allowed", hint="see ripple fetch --help")


def _constant(value: object) -> pa.Scalar:
    if isinstance(value, bool | str | float):
        return pa.scalar(value)
    if isinstance(value, int):
        # Arrow integers have 64 bits; Python's have no limit.
        return pa.scalar(value if abs(value) < 2**63 else float(value))
    raise ConfigError(f"--select: {value!r} is not a number, text or True/False")


def _fold(name: str, values: list[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = pc.call_function(name, [result, value])
    return result


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    if type(op) in _LOGIC:
        return pc.call_function(_LOGIC[type(op)], [left, right])
    if type(op) not in _ARITHMETIC:
        raise ConfigError("--select: only the operators + - * / ** and comparisons are allowed")
    if isinstance(op, ast.Div | ast.Pow):
        # As in Python, 1 / 2 is 0.5, and powers of integers do not overflow.
        left, right = pc.cast(left, pa.float64()), pc.cast(right, pa.float64())
    return pc.call_function(_ARITHMETIC[type(op)], [left, right])


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr, table: pa.Table) -> Any:
    if type(op) in _COMPARE:
        return pc.call_function(_COMPARE[type(op)], [_value(left, table), _value(right, table)])
    if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.List):
        values = [_value(v, table) for v in right.elts]
        if not all(isinstance(v, pa.Scalar) for v in values):
            raise ConfigError("--select: `in` needs a list of constants")
        column = _value(left, table)
        # Cast to the type of the column: a list of integers must also match a column of floats.
        found = pc.is_in(column, value_set=pa.array([v.as_py() for v in values]).cast(column.type))
        return pc.invert(found) if isinstance(op, ast.NotIn) else found
    raise ConfigError(f"--select: {type(op).__name__} is not allowed")


def _called(name: str, argument: Any) -> Any:
    if name == "mag":
        # AB magnitude of a flux in nJy (zero point 31.4); null, so never selected, where it is not positive.
        positive = pc.if_else(pc.greater(argument, 0), argument, None)
        return pc.subtract(31.4, pc.multiply(2.5, pc.log10(positive)))
    if name in _FUNCTIONS:
        return pc.call_function(_FUNCTIONS[name], [argument])
    raise ConfigError(
        f"--select: unknown function {name!r}{suggest(name, ['mag', *_FUNCTIONS])}",
        hint=f"there are {', '.join(sorted(['mag', *_FUNCTIONS]))}",
    )
