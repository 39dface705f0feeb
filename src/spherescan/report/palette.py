"""Colours and marks that people with any colour vision tell apart.

The colours are Okabe and Ito's ("Color Universal Design", 2008) without black and yellow, which
vanish on dark or light paper. Where they run out, marks and dashes go on.
"""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
# Those that plotly draws in space; its "x" is a letter that few fonts have.
MARKS = ("circle", "square", "diamond", "cross", "diamond-open")


def colour(index: int) -> str:
    """Return the colour of the i-th thing."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> str:
    """Return the dash of the i-th line; lines of one colour have different ones."""
    return DASHES[(index // len(COLOURS) + index) % len(DASHES)]


def mark(index: int) -> str:
    """Return the mark of the i-th group of points; groups of one colour have different ones."""
    return MARKS[(index // len(COLOURS) + index) % len(MARKS)]
