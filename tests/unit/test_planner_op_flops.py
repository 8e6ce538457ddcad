"""FLOPs of an Einsum from its equation; the real operations are in tests/tf/test_plan_keras.py."""

import numpy as np
import pytest

from tfdist.planner.op_flops import NONE, PRODUCTS, REDUCTIONS, einsum


@pytest.mark.parametrize(
    ("equation", "shapes", "kind", "flops"),
    [
        ("mk,kn->mn", [(3, 5), (5, 7)], PRODUCTS, 2 * 3 * 5 * 7),
        ("abc,cde->abde", [(2, 3, 5), (5, 7, 11)], PRODUCTS, 2 * 2 * 3 * 5 * 7 * 11),
        ("btnh,bsnh->bnts", [(2, 3, 5, 7), (2, 11, 5, 7)], PRODUCTS, 2 * 2 * 3 * 5 * 7 * 11),
        (" m k , k n -> m n ", [(3, 5), (5, 7)], PRODUCTS, 2 * 3 * 5 * 7),
        ("a,b->ab", [(3,), (5,)], PRODUCTS, 3 * 5),  # an outer product has nothing to add
        ("ab,ab->ab", [(3, 5), (3, 5)], PRODUCTS, 3 * 5),
        ("ab,ab->", [(3, 5), (3, 5)], PRODUCTS, 2 * 3 * 5),
        ("...mk,...kn->...mn", [(4, 2, 3, 5), (2, 5, 7)], PRODUCTS, 2 * 4 * 2 * 3 * 5 * 7),
        ("...k,kn->...n", [(4, 1, 5), (5, 7)], PRODUCTS, 2 * 4 * 5 * 7),
        ("...mk,...kn->...mn", [(1, 3, 5), (2, 5, 7)], PRODUCTS, 2 * 2 * 3 * 5 * 7),
        ("abx,bc->ac", [(3, 5, 99), (5, 7)], PRODUCTS, 2 * 3 * 5 * 7),  # x is summed first
        ("abc->ac", [(3, 5, 7)], REDUCTIONS, 3 * 5 * 7),
        ("abc->cab", [(3, 5, 7)], NONE, 0),
    ],
)
def test_an_einsum_counts_its_loops(equation, shapes, kind, flops):
    work = einsum(equation, shapes)
    assert (work.kind, work.flops) == (kind, flops)


@pytest.mark.parametrize("equation", ["mk,kn->mn", "...mk,...kn->...mn", "bmk,bnk->bmn"])
def test_the_multiplications_are_those_of_numpy(equation):
    """numpy reports the multiplications and additions of the unoptimized contraction."""
    shapes = {"mk,kn->mn": [(30, 50), (50, 70)]}.get(equation, [(2, 30, 50), (2, 50, 70)])
    if equation == "bmk,bnk->bmn":
        shapes = [(2, 30, 50), (2, 70, 50)]
    _, report = np.einsum_path(equation, *(np.empty(shape) for shape in shapes), optimize=False)
    [line] = [line for line in report.splitlines() if "Naive FLOP count" in line]
    assert einsum(equation, shapes).flops == pytest.approx(float(line.split()[-1]), rel=1e-3)


def test_a_formula_has_the_letters_of_the_equation():
    work = einsum("abc,cde->abde", [(2, 3, 5), (5, 7, 11)])
    assert work.formula == "2 a b c d e"
    assert dict(work.values) == {"a": 2, "b": 3, "c": 5, "d": 7, "e": 11}
