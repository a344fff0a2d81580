"""An estimate is a value that prints itself: value [low, high], n.

Tables, sentences and metrics take the same object; as JSON it is the plain dict that it is.
"""

from __future__ import annotations

SILENT = ("", "mean", "difference", "score")  # units that nobody wants repeated after a number
PLURAL = ("rows", "hours", "nats")  # of which there may be one


class Estimate(dict):
    """{"value", and where they exist "low", "high", "n", "unit", "method"}; empty: not measured.

    f"{gap}" is `value [low, high], n` in its own unit, f"{gap:share}" in the one that is named.
    """

    def __format__(self, unit: str) -> str:
        return words(self, unit or None)

    def __str__(self) -> str:
        return words(self)


NOT_MEASURED = Estimate()  # prints itself as "not measured", is false, and leaves no metric behind


def known(value) -> Estimate:
    """A dict or plain number as an Estimate; None, which is no measurement, as NOT_MEASURED."""
    if value is None:
        return NOT_MEASURED
    return Estimate(value if isinstance(value, dict) else {"value": value})


def number(value: float | int | None, unit: str = "") -> str:
    """A number as a reader wants it: 1,234; 0.0123; 91.2 %; 1.2e-05; 93.1 MB; - if absent."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if unit == "USD":
        return f"{value:,.2f} USD"
    whole = isinstance(value, int) or abs(value) >= 999.5  # rounded to 1,000
    text = f"{value:,.0f}" if whole else f"{value:.3g}"
    if unit in PLURAL and text == "1":
        unit = unit.removesuffix("s")
    return text if unit in SILENT else f"{text} {unit}"


def words(estimate: dict | None, unit: str | None = None) -> str:
    """`value [low, high], n` of an estimate, in its own unit unless another is given."""
    if not estimate:
        return "not measured"
    unit = estimate.get("unit", "") if unit is None else unit
    text = number(estimate["value"], unit)
    if "low" in estimate and "high" in estimate:
        text += f" [{number(estimate['low'], unit)}, {number(estimate['high'], unit)}]"
    return text + (f", n {estimate['n']:,}" if "n" in estimate else "")
