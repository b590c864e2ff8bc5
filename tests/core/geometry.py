"""Random window grids and the plain-loop geometry they are compared with."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from surgery.core.windows import WindowGrid

few = settings(max_examples=60, deadline=None)
grids = st.builds(WindowGrid, st.integers(4, 24), st.integers(4, 24), st.integers(2, 8))


@st.composite
def grids_and_windows(draw: st.DrawFn) -> tuple[WindowGrid, list[int]]:
    """A grid and a sorted, non-empty subset of its windows."""
    grid = draw(grids)
    picked = draw(st.lists(st.booleans(), min_size=grid.count, max_size=grid.count))
    always = draw(st.integers(0, grid.count - 1))
    return grid, [window for window in range(grid.count) if picked[window] or window == always]


def window_of(grid: WindowGrid, row: int, col: int) -> int:
    """Window id of the token at (row, col)."""
    return row // grid.window * (-(-grid.width // grid.window)) + col // grid.window


def tokens_of(grid: WindowGrid, window: int) -> list[tuple[int, int]]:
    """(slot in the window, index in the map) of the real tokens of a window, by visiting every slot."""
    top, left = divmod(window, -(-grid.width // grid.window))
    found = []
    for slot in range(grid.window**2):
        row, col = top * grid.window + slot // grid.window, left * grid.window + slot % grid.window
        if row < grid.height and col < grid.width:
            found.append((slot, row * grid.width + col))
    return found
