"""The arithmetic of blocks, chunks and batches: part of the format, so every number here is a promise."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layerbank.cache.geometry import MAX_CHUNK_BYTES, Grid, cut_batches, padding, rows_per_block, rows_per_chunk

num_rows = st.one_of(st.integers(1, 6_000), st.integers(6_000, 20_000_000))
row_bytes = st.one_of(
    st.sampled_from([768, 1536, 2048, 4096, 257 * 768, 197 * 1536, 257 * 2048, 4 * 1536, 20 << 20]),
    st.integers(1, 1 << 21),
)


@pytest.mark.parametrize(
    ("rows", "block_rows"),
    [
        *[
            (1, 1),
            (400, 400),
            (512, 512),
            (513, 176),
            (600, 304),
            (1_000, 144),
            (1_200, 240),
            (1_797, 304),
            (2_153, 240),
        ],
        *[(3_680, 128), (5_000, 240), (10_000, 592), (26_032, 1_536), (50_000, 2_944), (60_000, 3_008)],
        *[(73_257, 4_352), (262_144, 8_192), (1_281_167, 8_192)],
    ],
)
def test_the_rows_of_a_block_are_these_for_ever(rows: int, block_rows: int) -> None:
    assert rows_per_block(rows) == block_rows


@pytest.mark.parametrize(
    ("rows", "width_bytes", "chunk_rows"),
    [
        *[(50_000, 768, 2_944), (50_000, 1_536, 2_944), (1_281_167, 2_048, 8_192), (1_281_167, 4_096, 4_096)],
        *[(60_000, 257 * 768, 64), (1_281_167, 197 * 1_536, 32), (300, 257 * 768, 16), (1_797, 257 * 2_048, 16)],
    ],
)
def test_the_rows_of_a_chunk_are_these_for_ever(rows: int, width_bytes: int, chunk_rows: int) -> None:
    assert rows_per_chunk(rows, width_bytes) == chunk_rows


@given(num_rows)
@example(545)
def test_blocks_are_few_and_hold_little_padding(rows: int) -> None:
    block_rows = rows_per_block(rows)
    if rows <= 512:
        assert block_rows == rows
        return
    assert block_rows % 16 == 0
    assert 128 <= block_rows <= 8192
    assert padding(rows, block_rows) <= (rows * 0.01 if rows > 8_538 else rows * 0.06)
    if rows > 12_546:
        assert block_rows <= rows / 16  # a killed run loses at most that much
    if rows > 50_186:
        assert block_rows % 64 == 0


@given(num_rows, row_bytes)
@settings(deadline=None)
def test_chunks_fit_into_blocks_and_into_16_mib(rows: int, width_bytes: int) -> None:
    block_rows, chunk_rows = rows_per_block(rows), rows_per_chunk(rows, width_bytes)
    assert 1 <= chunk_rows <= block_rows
    assert chunk_rows * width_bytes <= MAX_CHUNK_BYTES or chunk_rows == 1
    if block_rows < rows:
        assert block_rows % chunk_rows == 0
    if block_rows * width_bytes <= MAX_CHUNK_BYTES:
        assert chunk_rows == block_rows


@given(
    st.integers(513, 2_000_000),
    st.sampled_from([192, 384, 512, 768, 1024, 1280]),
    st.sampled_from([1, 4, 16, 196, 257]),
)
@settings(deadline=None)
def test_chunks_of_real_models_fill_whole_pages(rows: int, embed_dim: int, num_tokens: int) -> None:
    width_bytes = num_tokens * embed_dim * 2
    chunk_rows = rows_per_chunk(rows, width_bytes)
    if embed_dim % 128 == 0:  # 192 wants 32 rows a page multiple, and a block of 16 rows times an odd number has none
        assert chunk_rows * width_bytes % 4096 == 0


@given(num_rows, st.integers(1, 2_000), st.integers(0, 10**9))
def test_blocks_chunks_and_batches_each_cover_every_row_once(rows: int, batch_size: int, pick: int) -> None:
    block_rows = rows_per_block(rows)
    grid = Grid(rows, block_rows, rows_per_chunk(rows, 257 * 768))
    assert grid.block(0).start == 0
    assert grid.block(grid.num_blocks - 1).stop == rows
    assert grid.chunk(grid.num_chunks - 1).stop == rows
    block = pick % grid.num_blocks
    if block:
        assert grid.block(block - 1).stop == grid.block(block).start
    chunks = grid.chunks_of(block)
    assert [row for chunk in chunks for row in grid.chunk(chunk)] == list(grid.block(block))
    batches = cut_batches(grid.block(block), batch_size)
    assert [row for batch in batches for row in batch] == list(grid.block(block))
    assert all((batch.start - grid.block(block).start) % batch_size == 0 for batch in batches)
    assert all(len(batch) == batch_size for batch in batches[:-1])
