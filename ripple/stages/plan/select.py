"""`--select`: conditions on the columns of a table, evaluated by Arrow.

Python's own parser reads the expression, which is then walked node by node and never executed; only the
operators and functions listed here exist, so a condition copied from anywhere is safe. `AND`, `OR`, `NOT` may
be in capitals.
"""

from __future__ import annotations

import ast
import io
import math
import operator
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
        known = pc.fill_null(mask, False)
        return pa.chunked_array([known]) if isinstance(known, pa.Array) else known
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
    """`AND OR NOT IN` in lower case, and `class` as a name; strings untouched."""
    # Joined to one line: in YAML, a long expression may run over several.
    tokens = tokenize.generate_tokens(io.StringIO(" ".join(expression.split())).readline)
    # `class` is a word of Python, but many catalogues have such a column. With a full-width first letter it
    # is a name, which the parser reads as `class`.
    words = {"AND": "and", "OR": "or", "NOT": "not", "IN": "in", "class": "\uff43lass"}
    return tokenize.untokenize(
        (t.type, words.get(t.string, t.string) if t.type == tokenize.NAME else t.string) for t in tokens
    ).strip()


# Values are Arrow arrays of int64, uint64, float64, bool or text, or constants of Python. -------------

Constant = bool | int | float | str
#: Bits of an integer constant, at most.
MAX_BITS = 1 << 15
#: Largest number of which a float holds every integer.
EXACT_FLOAT = 2**53


def _value(node: ast.expr, table: pa.Table) -> Any:
    """The value of a node: an array, or a constant."""
    match node:
        case ast.Name(id=name):
            return _promoted(table[name])
        case ast.Constant(value=value):
            if not isinstance(value, Constant):
                raise ConfigError(f"--select: {value!r} is not a number, text or True/False")
            return value
        case ast.BoolOp(op=op, values=values):
            return _fold(_LOGIC[type(op)], [_value(v, table) for v in values])
        case ast.BinOp(op=op, left=left, right=right):
            return _binary(op, _value(left, table), _value(right, table))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _binary(ast.Sub(), 0, _value(operand, table))
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


def _promoted(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in the widest type of its kind: `uint8 - uint8` must not wrap around."""
    if pa.types.is_floating(column.type):
        return (
            column.cast(pa.float32()).cast(pa.float64())
            if column.type == pa.float16()
            else column.cast(pa.float64())
        )
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column  # uint64 beyond int64: can be compared, not calculated with
    return column


def _fold(name: str, values: list[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = pc.call_function(name, [result, value])
    return result


def _is_array(value: Any) -> bool:
    return isinstance(value, pa.ChunkedArray | pa.Array)


def _is_whole(value: Any) -> bool:
    """Whether a value is an integer, or an array of integers; booleans count as in Python."""
    if _is_array(value):
        return bool(pa.types.is_integer(value.type) or pa.types.is_boolean(value.type))
    return isinstance(value, int)


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    if type(op) in _LOGIC:
        return pc.call_function(_LOGIC[type(op)], [left, right])
    if type(op) not in _ARITHMETIC:
        raise ConfigError("--select: only the operators + - * / ** and comparisons are allowed")
    if not _is_array(left) and not _is_array(right):
        return _constants(op, left, right)
    whole = _is_whole(left) and _is_whole(right)
    if isinstance(op, ast.Pow) and not (whole and isinstance(right, int) and right >= 0):
        whole = False  # a negative power of an integer is a fraction
    if isinstance(op, ast.Div) or not whole:
        if isinstance(op, ast.Div) and whole:
            _check_digits(left)
            _check_digits(right)
        # As in Python, 1 / 2 is 0.5.
        return pc.call_function(_ARITHMETIC[type(op)], [_as_float(left), _as_float(right)])
    # Overflow is an error, where Arrow's plain functions would wrap around.
    return pc.call_function(f"{_ARITHMETIC[type(op)]}_checked", [_as_int64(left), _as_int64(right)])


def _constants(op: ast.operator, left: Constant, right: Constant) -> Constant:
    """Two constants, calculated by Python itself."""
    if isinstance(left, str) or isinstance(right, str):
        raise ConfigError("--select: text cannot be calculated with")
    try:
        match op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
            case _:
                if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_BITS:
                    # `9**9**9` would fill the memory; it is larger than any value of a table.
                    return -math.inf if left < 0 and right % 2 else math.inf
                power = left**right
                if not isinstance(power, int | float):
                    raise ConfigError("--select: a power that is not a real number")
                return power
    except (ArithmeticError, ValueError) as err:
        raise ConfigError(f"--select: {left!r} and {right!r}: {err}") from None


def _as_int64(value: Any) -> Any:
    if _is_array(value):
        return value.cast(pa.int64())  # raises where a uint64 does not fit
    if abs(int(value)) >= 2**63:
        raise CatalogueError(f"--select: {value} does not fit into 64 bits")
    return pa.scalar(int(value), pa.int64())


def _as_float(value: Any) -> Any:
    if not _is_array(value):
        return pa.scalar(float(value), pa.float64())
    return value.cast(pa.int8() if pa.types.is_boolean(value.type) else value.type).cast(
        pa.float64(), safe=False
    )


def _check_digits(value: Any) -> None:
    """Integers of more than 53 bits would be rounded before they are divided."""
    if _is_array(value) and pa.types.is_integer(value.type) and len(value):
        ends = [pc.min(value).as_py() or 0, pc.max(value).as_py() or 0]
    else:
        ends = [value] if isinstance(value, int) else []
    if any(abs(end) > EXACT_FLOAT for end in ends):
        raise CatalogueError("--select: integers of more than 53 bits lose digits in a division")


# Comparisons ---------------------------------------------------------


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr, table: pa.Table) -> Any:
    if type(op) in _COMPARE:
        return _compare(_COMPARE[type(op)], _value(left, table), _value(right, table))
    if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.List):
        values = [_value(v, table) for v in right.elts]
        if any(_is_array(v) for v in values):
            raise ConfigError("--select: `in` needs a list of constants")
        column = _value(left, table)
        equal = [_compare("equal", column, v) for v in values]
        found = _fold("or_kleene", equal) if equal else pc.is_in(column, value_set=pa.array([], column.type))
        return pc.invert(found) if isinstance(op, ast.NotIn) else found
    raise ConfigError(f"--select: {type(op).__name__} is not allowed")


#: What `a OP b` is as `b OP a`.
_TURNED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}


def _compare(name: str, left: Any, right: Any) -> Any:
    """A comparison as Python makes it: integers and floats by their exact values."""
    if not _is_array(left) and not _is_array(right):
        raise ConfigError("--select: a comparison of two constants selects all or nothing")
    if not _is_array(left):
        return _compare(_TURNED.get(name, name), right, left)
    kinds = [(pa.types.is_string(v.type) if _is_array(v) else isinstance(v, str)) for v in (left, right)]
    if kinds[0] != kinds[1]:
        raise CatalogueError("--select: text and numbers cannot be compared", hint="put text in quotes")
    if kinds[0]:
        return pc.call_function(name, [left, right if _is_array(right) else pa.scalar(right)])
    left = left.cast(pa.int64()) if pa.types.is_boolean(left.type) else left
    if not _is_array(right):
        return _compare_constant(name, left, right)
    right = right.cast(pa.int64()) if pa.types.is_boolean(right.type) else right
    if _is_whole(left) != _is_whole(right):
        return _compare_mixed(name, left, right)
    if left.type != right.type:  # int64 and uint64 beyond it: by sign, then as uint64
        return _compare_signs(name, left, right)
    return pc.call_function(name, [left, right])


def _compare_constant(name: str, column: Any, value: bool | float) -> Any:
    """A column of numbers with a constant."""
    if pa.types.is_floating(column.type):
        if isinstance(value, int) and float_of(value) != value:
            # No float equals it: compare with the float next to it.
            return _between(name, column, float_of(value), above=float_of(value) > value)
        return pc.call_function(name, [column, pa.scalar(float_of(value), pa.float64())])
    if isinstance(value, float):
        if value != value:
            return _all(column, name == "not_equal")
        if value in (float("inf"), float("-inf")):
            return _all(column, _beyond(name, above=value > 0))
        if not value.is_integer():
            # 7.5: `< 7.5` is `<= 7` for whole numbers, and nothing equals it.
            return _between(name, column, math.floor(value) + 1, above=True)
        value = int(value)
    limits = (-(2**63), 2**63 - 1) if column.type == pa.int64() else (0, 2**64 - 1)
    if not limits[0] <= value <= limits[1]:
        return _all(column, _beyond(name, above=value > limits[1]))
    return pc.call_function(name, [column, pa.scalar(int(value), column.type)])


def float_of(value: float) -> float:
    """The nearest float; infinite where there is none."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _between(name: str, column: Any, near: float, *, above: bool) -> Any:
    """A comparison with a value that none of the column has: just below `near`, or just `above` it turned."""
    if name in ("equal", "not_equal"):
        return _all(column, name == "not_equal")
    smaller = name in ("less", "less_equal")
    function = ("less" if above else "less_equal") if smaller else ("greater_equal" if above else "greater")
    return pc.call_function(function, [column, pa.scalar(near, column.type)])


def _beyond(name: str, *, above: bool) -> bool:
    """What a comparison with a value beyond all values of a column gives."""
    if name in ("equal", "not_equal"):
        return name == "not_equal"
    return (name in ("less", "less_equal")) is above


def _all(column: Any, value: bool) -> Any:
    """The same answer for every row; null where the column is."""
    return pc.if_else(pc.is_valid(column), value, None)


def _compare_mixed(name: str, left: Any, right: Any) -> Any:
    """Integers with floats, row by row: as floats where both have few digits, else by exact integers."""
    if not _is_whole(left):
        return _compare_mixed(_TURNED.get(name, name), right, left)
    plain = pc.call_function(name, [_as_float(left), right])
    # From 2^53 on an integer may have lost a digit as a float.
    large = pc.fill_null(pc.greater_equal(pc.abs(_as_float(left)), float(EXACT_FLOAT)), False)
    if not pc.any(large).as_py():
        return plain
    rows = [
        None if a is None or b is None else _PYTHON[name](a, b)
        for a, b in zip(left.filter(large).to_pylist(), right.filter(large).to_pylist(), strict=True)
    ]
    whole = plain.combine_chunks() if isinstance(plain, pa.ChunkedArray) else plain
    mask = large.combine_chunks() if isinstance(large, pa.ChunkedArray) else large
    return pc.replace_with_mask(whole, mask, pa.array(rows, pa.bool_()))


_PYTHON = {
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
}


def _compare_signs(name: str, left: Any, right: Any) -> Any:
    """int64 with uint64."""
    if left.type == pa.uint64():
        return _compare_signs(_TURNED.get(name, name), right, left)
    negative = pc.less(left, 0)
    as_unsigned = pc.if_else(negative, 0, left).cast(pa.uint64())
    below = name in ("less", "less_equal", "not_equal")
    return pc.if_else(negative, below, pc.call_function(name, [as_unsigned, right]))


def _called(name: str, argument: Any) -> Any:
    if name == "mag":
        # AB magnitude of a flux in nJy (zero point 31.4); null, so never selected, where it is not positive.
        flux = _as_float(argument)
        positive = pc.if_else(pc.greater(flux, 0), flux, None)
        return pc.subtract(31.4, pc.multiply(2.5, pc.log10(positive)))
    if name not in _FUNCTIONS:
        raise ConfigError(
            f"--select: unknown function {name!r}{suggest(name, ['mag', *_FUNCTIONS])}",
            hint=f"there are {', '.join(sorted(['mag', *_FUNCTIONS]))}",
        )
    if name == "isnull":
        return pc.is_null(argument)
    if name == "abs" and _is_whole(argument):
        return pc.abs_checked(_as_int64(argument))
    return pc.call_function(_FUNCTIONS[name], [_as_float(argument)])
