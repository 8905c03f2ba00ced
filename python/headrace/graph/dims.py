"""Arithmetic on symbolic dims.

A dim is an ``int`` or a string: a name ("batch") or a polynomial over names in one canonical spelling ("12*batch",
"sequence + 1"), so that equal dims are equal strings. Whatever is not a polynomial ("floor(h/2)") counts as a name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from functools import lru_cache

Dim = int | str

# A polynomial: monomial (sorted tuple of names, with repetition) -> coefficient.
_Poly = dict[tuple[str, ...], int]


@lru_cache(maxsize=4096)
def _parse(dim: Dim) -> tuple[tuple[tuple[str, ...], int], ...]:
    if isinstance(dim, int):
        return (((), dim),) if dim else ()
    if dim.isidentifier():
        return (((dim,), 1),)
    try:
        tree = ast.parse(dim, mode="eval").body
    except (SyntaxError, ValueError):
        return (((dim,), 1),)
    return tuple(sorted(_from_ast(tree).items()))


def _from_ast(node: ast.expr) -> _Poly:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return {(): node.value} if node.value else {}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
        left, right = _from_ast(node.left), _from_ast(node.right)
        if isinstance(node.op, ast.Mult):
            return _times(left, right)
        return _plus(left, right, 1 if isinstance(node.op, ast.Add) else -1)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return {monomial: -coefficient for monomial, coefficient in _from_ast(node.operand).items()}
    return {(ast.unparse(node),): 1}


def _plus(left: _Poly, right: _Poly, sign: int = 1) -> _Poly:
    result = dict(left)
    for monomial, coefficient in right.items():
        result[monomial] = result.get(monomial, 0) + sign * coefficient
    return {monomial: coefficient for monomial, coefficient in result.items() if coefficient}


def _times(left: _Poly, right: _Poly) -> _Poly:
    result: _Poly = {}
    for names_l, coefficient_l in left.items():
        for names_r, coefficient_r in right.items():
            monomial = tuple(sorted(names_l + names_r))
            result[monomial] = result.get(monomial, 0) + coefficient_l * coefficient_r
    return {monomial: coefficient for monomial, coefficient in result.items() if coefficient}


def _spell(poly: _Poly) -> Dim:
    if not poly:
        return 0
    if set(poly) == {()}:
        return poly[()]
    text = ""
    for names, coefficient in sorted(poly.items(), key=lambda item: (-len(item[0]), item[0])):
        factors = [name if name.isidentifier() or len(names) == 1 == coefficient else f"({name})" for name in names]
        if abs(coefficient) != 1 or not names:
            factors.insert(0, str(abs(coefficient)))
        sign = "-" if coefficient < 0 else "+"
        text += f" {sign} " if text else ("-" if coefficient < 0 else "")
        text += "*".join(factors)
    return text


def canonical(dim: Dim) -> Dim:
    """`dim` in its one canonical spelling."""
    return dim if isinstance(dim, int) or dim.isidentifier() else _spell(dict(_parse(dim)))


def add(a: Dim, b: Dim) -> Dim:
    """A + b."""
    return a + b if isinstance(a, int) and isinstance(b, int) else _spell(_plus(dict(_parse(a)), dict(_parse(b))))


def sub(a: Dim, b: Dim) -> Dim:
    """A - b."""
    return a - b if isinstance(a, int) and isinstance(b, int) else _spell(_plus(dict(_parse(a)), dict(_parse(b)), -1))


def mul(a: Dim, b: Dim) -> Dim:
    """A * b."""
    return a * b if isinstance(a, int) and isinstance(b, int) else _spell(_times(dict(_parse(a)), dict(_parse(b))))


def floor_divide(a: Dim, b: int) -> Dim:
    """The whole part of a / b."""
    return a // b if isinstance(a, int) else a if b == 1 else canonical(f"floor(({a}) / {b})")


def names(dim: Dim) -> set[str]:
    """The names `dim` is made of."""
    return {name for monomial, _ in _parse(dim) for name in monomial}


def product(dims: Iterable[Dim]) -> Dim:
    """The product of `dims`; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = mul(result, dim)
    return result


def divide_products(over: Sequence[Dim], under: Sequence[Dim]) -> Dim | None:
    """product(over) / product(under), or None where that is not a polynomial with whole coefficients.

    Equal factors are cancelled first. Symbolic dims are taken to be at least 1.
    """
    rest, below = list(over), []
    for dim in under:
        if dim in rest:
            rest.remove(dim)
        else:
            below.append(dim)
    numerator, denominator = dict(_parse(product(rest))), dict(_parse(product(below)))
    if len(denominator) != 1:
        return None
    ((names, coefficient),) = denominator.items()
    result: _Poly = {}
    for monomial, factor in numerator.items():
        left = list(monomial)
        for name in names:
            if name not in left:
                return None
            left.remove(name)
        if factor % coefficient:
            return None
        result[tuple(left)] = factor // coefficient
    return _spell(result)


def broadcast(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...] | None:
    """The shape `shapes` broadcast to under ONNX's (numpy's) rule, or None where that cannot be told.

    A symbolic dim beside an int above 1 gives the int: at run time it can only be that or 1. Two different
    symbolic dims cannot be told apart from 1, so the result is None.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dims = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        fixed = [dim for dim in dims if isinstance(dim, int)]
        if len(fixed) > 1 or (not fixed and len(dims) > 1):
            return None
        result.append(fixed[0] if fixed else dims.pop() if dims else 1)
    return tuple(result)
