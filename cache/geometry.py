"""Cut N rows into row blocks, and the rows of an array into chunks: pure arithmetic, part of the format.

A *row block* is R consecutive rows: the unit of ownership, of the journal and of resume. R depends on N only, so arrays
added later share the borders of the existing ones. A *chunk* is r rows of one array in one file; r divides R, unless
the store has one row block.

Changing a number here changes what a resumed run finds on disk: it would be another format version.
"""

from __future__ import annotations

from dataclasses import dataclass

SINGLE_BLOCK_ROWS = 512  # up to here the whole store is one row block
BLOCKS_AIM = 16  # a killed run loses at most about one row block's work, 1/16
MIN_AIM_ROWS, MAX_AIM_ROWS = 256, 8192
GRANULES = (64, 16)  # rows; of the widths of real models 64 rows fill 16 KiB pages, and 16 rows 4 KiB pages
PADDING_LIMIT = 100  # padding of the last row block, at most N / 100
MAX_CHUNK_BYTES = 16 * 1024 * 1024
PAGE_BYTES = 4096  # nearly everywhere
LARGE_PAGE_BYTES = 16384  # macOS on ARM


def rows_per_block(num_rows: int) -> int:
    """R for N rows.

    With aim = N // 16 clamped to [256, 8192], the first of these whose padding is at most N / 100: multiples
    of 64 from aim down to aim / 2, multiples of 16 likewise, multiples of 64 from aim up to 2 aim, multiples
    of 16 likewise. If there is none, the multiple of 16 within [aim / 2, 2 aim] with the least padding, the
    largest of equals. Up to 512 rows: N.

    >>> rows_per_block(60_000), rows_per_block(1_281_167), rows_per_block(2_153), rows_per_block(400)
    (3008, 8192, 240, 400)
    """
    if num_rows <= SINGLE_BLOCK_ROWS:
        return num_rows
    aim = min(max(num_rows // BLOCKS_AIM, MIN_AIM_ROWS), MAX_AIM_ROWS)
    fine, coarse = GRANULES[1], GRANULES[0]
    tries = [
        *_multiples(coarse, aim // 2, aim)[::-1],
        *_multiples(fine, aim // 2, aim)[::-1],
        *_multiples(coarse, aim, 2 * aim),
        *_multiples(fine, aim, 2 * aim),
    ]
    for rows in tries:
        if padding(num_rows, rows) * PADDING_LIMIT <= num_rows:
            return rows
    return min(tries, key=lambda rows: (padding(num_rows, rows), -rows))


def rows_per_chunk(num_rows: int, row_bytes: int) -> int:
    """r for an array of N rows of `row_bytes` bytes: R where a chunk of R rows has at most 16 MiB.

    Else, among the divisors of R (with a single row block: among all numbers) from an eighth of the limit to the
    limit, the best by: data a multiple of 4 KiB, then the least padding beyond N / 100, then data a multiple
    of 16 KiB, then the largest.

    >>> rows_per_chunk(60_000, 768), rows_per_chunk(60_000, 257 * 768)
    (3008, 64)
    """
    block = rows_per_block(num_rows)
    limit = max(1, MAX_CHUNK_BYTES // row_bytes)
    if block <= limit:
        return block
    fitting = [rows for rows in range(1, limit + 1) if block % rows == 0 or block == num_rows]
    return min(
        [rows for rows in fitting if rows * 8 >= limit] or fitting[-1:],
        key=lambda rows: (
            rows * row_bytes % PAGE_BYTES != 0,
            max(0, padding(num_rows, rows) * PADDING_LIMIT - num_rows),
            rows * row_bytes % LARGE_PAGE_BYTES != 0,
            -rows,
        ),
    )


def padding(num_rows: int, rows: int) -> int:
    """Padding rows beyond N in pieces of `rows` rows."""
    return -num_rows % rows


def _multiples(granule: int, low: int, high: int) -> list[int]:
    return list(range(-(-low // granule) * granule, high + 1, granule))


@dataclass(frozen=True)
class Grid:
    """The row blocks of a store and the chunks of one of its arrays.

    Args:
        num_rows: N.
        block_rows: R.
        chunk_rows: r.
    """

    num_rows: int
    block_rows: int
    chunk_rows: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_rows // self.block_rows)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_rows // self.chunk_rows)

    def block(self, block: int) -> range:
        start = block * self.block_rows
        return range(start, min(start + self.block_rows, self.num_rows))

    def chunk(self, chunk: int) -> range:
        """The rows of a chunk, without padding."""
        start = chunk * self.chunk_rows
        return range(start, min(start + self.chunk_rows, self.num_rows))

    def chunks_of(self, block: int) -> range:
        """The chunks that hold the rows of a row block."""
        rows = self.block(block)
        return range(rows.start // self.chunk_rows, -(-rows.stop // self.chunk_rows))


def cut_batches(rows: range, batch_size: int) -> list[range]:
    """The batches of one row block: cut at fixed row numbers, so that a row's neighbours never depend on the history of a run.

    >>> cut_batches(range(304, 520), 100)
    [range(304, 404), range(404, 504), range(504, 520)]
    """
    return [range(start, min(start + batch_size, rows.stop)) for start in range(rows.start, rows.stop, batch_size)]
