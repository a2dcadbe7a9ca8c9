"""Formulas of the final score: what they compute, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cascade.formula import DEEPEST, LONGEST, Formula, FormulaError

RANDOM = np.random.default_rng(0)
OUTPUTS = {
    name: RANDOM.random((4, 7)).astype(np.float32) for name in ("ctr", "engagement", "revenue")
}
CTR, ENGAGEMENT, REVENUE = OUTPUTS.values()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ctr", CTR),
        (" ctr * (0.6 + 0.4 * engagement) ", CTR * (0.6 + 0.4 * ENGAGEMENT)),
        ("ctr ** 2 / -engagement - 1e-3", CTR**2 / -ENGAGEMENT - 1e-3),
        ("sigmoid(ctr) + log(revenue)", 1 / (1 + np.exp(-CTR)) + np.log(REVENUE)),
        ("exp(sqrt(ctr))", np.exp(np.sqrt(CTR))),
        (
            "min(ctr, engagement, 0.5) * max(revenue, 0.2)",
            np.minimum(np.minimum(CTR, ENGAGEMENT), 0.5) * np.maximum(REVENUE, 0.2),
        ),
    ],
)
def test_a_formula_computes_what_it_says(text: str, expected: Any) -> None:
    found = Formula.of(text, [*OUTPUTS])(OUTPUTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_reads_names_once_in_their_order() -> None:
    assert Formula.read("b * a + max(b, c)").names == ("b", "a", "c")


def test_what_is_no_number_stays_in_its_place() -> None:
    outputs = {"ctr": np.array([[0.5, 0.0, -1.0]], np.float32)}
    found = Formula.read("log(ctr) / ctr")(outputs)
    assert np.isfinite(found).tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no formula"),
        ("ctr +", "is no formula"),
        ("ctr\x00", "is no formula"),
        ("(" * 500 + "ctr" + ")" * 500, "is no formula"),
        ("__import__('os')", "is no part of a formula"),
        ("ctr.real", "is no part of a formula"),
        ("ctr" + ".real" * 300, "is no part of a formula"),
        ("ctr[0]", "is no part of a formula"),
        ("ctr if ctr else 1", "is no part of a formula"),
        ("ctr > 1", "is no part of a formula"),
        ("ctr * True", "is no part of a formula"),
        ("ctr * 'a'", "is no part of a formula"),
        ("sigmoid(ctr, ctr)", "is no part of a formula"),
        ("max(ctr)", "is no part of a formula"),
        ("max(*ctr, ctr)", "is no part of a formula"),
        ("(lambda: ctr)()", "is no part of a formula"),
        ("ctr * 1e999", "a number beyond"),
        ("ctr * 1" + "0" * 60, "a number beyond"),
        ("0.5 + 1", "reads no output"),
        ("ctr" + " + ctr" * (DEEPEST + 1), f"more than {DEEPEST} operations"),
        ("-" * (DEEPEST + 1) + "ctr", f"more than {DEEPEST} operations"),
        ("ctr" + " " * LONGEST + "+ ctr", f"{LONGEST} characters at most"),
        ("ctrr * 2", "unknown output 'ctrr': did you mean 'ctr'?"),
        ("x", "unknown output 'x': known are ctr, engagement, revenue"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormulaError) as caught:
        Formula.of(text, [*OUTPUTS])
    assert message in str(caught.value)
    assert ", ".join(OUTPUTS) in str(caught.value)
    assert "\n" not in str(caught.value)
