"""A request to stop, set by one thread and seen by another."""

from __future__ import annotations


class Halt:
    """Stops a whole piece of work, or one of an answer's columns."""

    def __init__(self) -> None:
        self._all = False
        self._columns: set[str] = set()

    def set(self, column: str = "") -> None:
        """Ask for the end of everything, or of one column."""
        if column:
            self._columns.add(column)
        else:
            self._all = True

    def is_set(self, column: str = "") -> bool:
        """Whether everything should end, or this column."""
        return self._all or column in self._columns
