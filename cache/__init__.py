"""The token store: the tokens of every layer of a data set, written once and read many times.

This package has the code that reads, writes, verifies and forecasts the files of a store; README.md specifies the format. It is
independent of torch, images, models and terminals.
"""

from .catalog import (
    Garbage,
    StoreInfo,
    Unfinished,
    find_garbage,
    find_unfinished,
    list_specs,
    list_stores,
    read_store_info,
    remove_garbage,
)
from .disk_space import (
    BENCHMARK_PREFIX,
    ArrayForecast,
    BlockTime,
    StoreForecast,
    check_writable,
    forecast_store,
    free_bytes,
    free_files,
    nearest_folder,
    needed_bytes,
    time_block,
)
from .errors import (
    BatchError,
    CacheError,
    ChangedDataError,
    DamagedStoreError,
    FieldDifference,
    IncompleteStoreError,
    MissingArrayError,
    NotAStoreError,
    NotWritableError,
    SpecError,
    SpecMismatchError,
    StorageFullError,
    StoreLockedError,
    StoreMissingError,
)
from .hdf5 import export_hdf5, import_hdf5, read_hdf5_spec
from .journal import BatchNotes
from .reader import SampleIds, TokenArray, TokenCache, open_array
from .row_order import chunk_shuffle, exact_shuffle, spread_shuffle
from .spec import ArraySpec, CacheSpec, kinds_with_own_dtype, storage_dtype_of, storage_dtypes_text
from .staging import Batch
from .verify import Damage, Repair, repair_store, verify_store
from .workers import Worker, check_test_lock, offer_test_lock
from .writer import CacheWriter

__all__ = [
    # identity and arrays
    "CacheSpec",
    "ArraySpec",
    "storage_dtypes_text",
    "storage_dtype_of",
    "kinds_with_own_dtype",
    # writing
    "CacheWriter",
    "Worker",
    "Batch",
    "BatchNotes",
    "forecast_store",
    "StoreForecast",
    "ArrayForecast",
    "free_bytes",
    "free_files",
    "needed_bytes",
    "nearest_folder",
    "check_writable",
    "time_block",
    "BlockTime",
    "BENCHMARK_PREFIX",
    # reading
    "TokenCache",
    "TokenArray",
    "SampleIds",
    "open_array",
    "exact_shuffle",
    "spread_shuffle",
    "chunk_shuffle",
    # maintenance
    "list_stores",
    "list_specs",
    "read_store_info",
    "StoreInfo",
    "verify_store",
    "Damage",
    "repair_store",
    "Repair",
    "find_garbage",
    "find_unfinished",
    "remove_garbage",
    "Garbage",
    "Unfinished",
    "offer_test_lock",
    "check_test_lock",
    "export_hdf5",
    "import_hdf5",
    "read_hdf5_spec",
    # errors
    "CacheError",
    "SpecError",
    "StoreMissingError",
    "NotAStoreError",
    "SpecMismatchError",
    "FieldDifference",
    "ChangedDataError",
    "IncompleteStoreError",
    "DamagedStoreError",
    "MissingArrayError",
    "BatchError",
    "StoreLockedError",
    "StorageFullError",
    "NotWritableError",
]
