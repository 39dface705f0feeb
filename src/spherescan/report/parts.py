"""Where the time goes."""

from collections.abc import Mapping
from typing import Any

from spherescan.report.answers import plain
from spherescan.report.page import Section, Table
from spherescan.report.palette import colour

_MOST_PARTS = 12
_SMALLEST = 1e-3  # of the whole


def slowest_parts(seconds: Mapping[str, float], *, whole: float, of: str) -> Section:
    """Draw the parts that take longest.

    Args:
        seconds: Of each part.
        whole: Of all together; what the parts do not explain is shown as the rest.
        of: What was done in that time, in words: "one batch of 64 series".
    """
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    shown = dict(ordered[:_MOST_PARTS])
    if (rest := whole - sum(shown.values())) > _SMALLEST * whole:
        shown["everything else"] = rest
    unit, short, per = ("seconds", "s", 1.0) if whole >= 1 else ("milliseconds", "ms", 1e3)
    names, values = [*shown][::-1], [per * value for value in shown.values()][::-1]
    data: tuple[dict[str, Any], ...] = (
        {
            "type": "bar",
            "orientation": "h",
            "x": values,
            "y": [plain(name) for name in names],
            "marker": {"color": colour(0)},
            "hovertemplate": f"%{{y}}: %{{x:.3f}} {short}<extra></extra>",
        },
    )
    layout = {
        "margin": {"l": 200, "r": 20, "t": 10, "b": 50},
        "xaxis": {"title": {"text": unit}},
        "yaxis": {"type": "category"},
    }
    table = Table(
        ("part", unit, "share"),
        tuple((name, f"{per * s:.3f}", f"{s / whole:.1%}") for name, s in shown.items()),
    )
    text = f"{per * whole:.3g} {short} for {of}, and which parts of it they went to."
    return Section("parts", "Slowest parts", text, data, layout, table)
