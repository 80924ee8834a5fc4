"""Tables for the terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, with numbers at the right and a rule under the first row."""
    columns = [
        (max(map(len, cells)), index > 0 and all(cell.lstrip(">")[:1].isdigit() or not cell for cell in cells[1:]))
        for index, cells in enumerate(zip(*rows, strict=True))
    ]

    def line(row):
        cells = (x.rjust(w) if right else x.ljust(w) for x, (w, right) in zip(row, columns, strict=True))
        return "  ".join(cells).rstrip()

    lines = [line(row) for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
