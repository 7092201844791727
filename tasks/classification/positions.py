"""Address the images of a shard by their position in it, counted from 0, and cut the shard between any two."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fmnist_model.formats import ContainerKind
from fmnist_model.formats.interface import row_fragments
from infra.storage.tables.planning.plan import PIECE_SCHEMA, Piece

_KINDS_TO_CUT = frozenset({"image", "parquet", "idx"})
"""Kinds of pieces that can be read from any image on. The others are read from their start."""


class ShardPositions:
    """The pieces of a shard and the positions of their images."""

    def __init__(self, inputs: pa.Table) -> None:
        """Take the rows of `PLAN_SCHEMA`."""
        self._pieces = inputs.select(PIECE_SCHEMA.names).cast(PIECE_SCHEMA)
        self._ends = np.cumsum(self._pieces.column("rows").to_numpy())

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def piece_at(self, position: int) -> Piece:
        """Return the piece that holds an image."""
        return self._piece(self._index(position))

    def can_be_cut(self, position: int) -> bool:
        """Whether the piece that holds an image can be read from any of its images on."""
        return self.piece_at(position).kind in _KINDS_TO_CUT

    def end_of(self, position: int, key: Callable[[Piece], object]) -> int:
        """Return the position after the piece that holds an image, and after the next pieces with the same key."""
        index = self._index(position)
        wanted = key(self._piece(index))
        while index + 1 < len(self._ends) and key(self._piece(index + 1)) == wanted:
            index += 1
        return int(self._ends[index])

    def names(self, first: int, end: int) -> list[str]:
        """Name images of one file by their row numbers, without reading the file."""
        piece = self.piece_at(first)
        if piece.kind not in get_args(ContainerKind):
            return [piece.uri]
        row = piece.first_row + first - self._start(self._index(first))
        return pc.binary_join_element_wise(pa.scalar(piece.uri), row_fragments(row, end - first), "").to_pylist()  # type: ignore[no-any-return]

    def cut(self, first: int, end: int) -> tuple[pa.Table, int]:
        """Return pieces with the images from `first` to `end`.

        Returns:
            Rows of `PIECE_SCHEMA`, and the number of images before `first`. There may also be images after `end`.
        """
        first_index, last_index = self._index(first), self._index(end - 1)
        skipped, surplus = first - self._start(first_index), int(self._ends[last_index]) - end
        pieces = self._pieces.take(pa.array(range(first_index, last_index + 1)))  # a copy, so that only these are sent
        first_rows, rows = (pieces.column(name).to_numpy().copy() for name in ("first_row", "rows"))
        if self._piece(last_index).kind in _KINDS_TO_CUT:
            rows[-1] -= surplus
        if self._piece(first_index).kind in _KINDS_TO_CUT:
            first_rows[0] += skipped
            rows[0] -= skipped
            skipped = 0
        for name, values in (("first_row", first_rows), ("rows", rows)):
            number = PIECE_SCHEMA.get_field_index(name)
            pieces = pieces.set_column(number, PIECE_SCHEMA.field(number), pa.array(values))
        return pieces, skipped

    def split(self, position: int, smaller: list[Piece]) -> None:
        """Replace the piece that holds an image by smaller pieces with the same images."""
        index = self._index(position)
        rows = pa.Table.from_batches([Piece.to_arrow(smaller)])
        self._pieces = pa.concat_tables([self._pieces.slice(0, index), rows, self._pieces.slice(index + 1)])
        self._ends = np.cumsum(self._pieces.column("rows").to_numpy())

    def _index(self, position: int) -> int:
        return int(np.searchsorted(self._ends, position, side="right"))

    def _start(self, index: int) -> int:
        return int(self._ends[index - 1]) if index else 0

    def _piece(self, index: int) -> Piece:
        [piece] = Piece.from_arrow(self._pieces.slice(index, 1))
        return piece
