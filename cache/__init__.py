"""The token store: the tokens of every layer for rows of images, written once and read many times.

This package has the code that reads, writes, verifies and forecasts the files of a store; README.md specifies the format. It is
independent of torch, images, models and terminals.
"""

from .damage import Damage
from .errors import (
    BatchError,
    CacheError,
    ChangedDataError,
    DamagedStoreError,
    FieldDifference,
    IncompleteStoreError,
    MissingArrayError,
    MissingRowsError,
    MissingTargetError,
    NewerStoreError,
    NotAStoreError,
    NotWritableError,
    OldFormatError,
    SpecError,
    SpecMismatchError,
    StorageFullError,
    StoreLockedError,
    StoreMissingError,
)
from .format1 import model_of_format1
from .gaps import Gap, Gaps, find_gaps, ids_of, store_gap
from .journal import BatchNotes, Journal
from .maintenance.catalog import (
    Garbage,
    StoreInfo,
    Unfinished,
    find_garbage,
    find_unfinished,
    list_stores,
    read_store_info,
    remove_garbage,
)
from .maintenance.disk_space import (
    BENCHMARK_PREFIX,
    StoreForecast,
    check_writable,
    forecast_store,
    free_bytes,
    free_files,
    nearest_folder,
    needed_bytes,
    time_block,
)
from .maintenance.features import write_features
from .maintenance.foreign_features import store_features
from .maintenance.hdf5 import export_hdf5, import_hdf5, read_hdf5_spec
from .maintenance.merge import Merge, merge_stores
from .maintenance.upgrade import Upgrade, find_format1, remove_leftovers, upgrade_store
from .maintenance.verify import Repair, repair_store, verify_store
from .model_stores import ModelStores, WantedRows, array_key, known_hashes
from .reader import StoreFiles, TokenStore, require_current
from .row_order import chunk_shuffle, spread_shuffle
from .rows import HASH_RULE, RowSet
from .spec import ArraySpec, ModelSpec, StoreSpec, kinds_with_own_dtype, storage_dtype_of, storage_dtypes_text
from .targets import LABEL, Target, list_targets, read_target, write_target
from .token_array import TokenArray
from .view import TokenView
from .writing.deleting import delete_store
from .writing.resume import StoreRequest, check_request
from .writing.staging import Batch
from .writing.workers import Worker, check_test_lock, offer_test_lock
from .writing.writer import CacheWriter

__all__ = [
    # identity and arrays
    "ModelSpec",
    "StoreSpec",
    "RowSet",
    "model_of_format1",
    "HASH_RULE",
    "ArraySpec",
    "storage_dtypes_text",
    "storage_dtype_of",
    "kinds_with_own_dtype",
    # writing
    "CacheWriter",
    "StoreRequest",
    "check_request",
    "delete_store",
    "Worker",
    "Batch",
    "BatchNotes",
    "forecast_store",
    "StoreForecast",
    "free_bytes",
    "free_files",
    "needed_bytes",
    "nearest_folder",
    "check_writable",
    "time_block",
    "BENCHMARK_PREFIX",
    # reading
    "TokenView",
    "WantedRows",
    "ModelStores",
    "array_key",
    "known_hashes",
    "find_gaps",
    "store_features",
    "store_gap",
    "ids_of",
    "Gap",
    "Gaps",
    "TokenStore",
    "StoreFiles",
    "require_current",
    "Journal",
    "TokenArray",
    "spread_shuffle",
    "chunk_shuffle",
    # targets
    "Target",
    "LABEL",
    "write_target",
    "read_target",
    "list_targets",
    # maintenance
    "list_stores",
    "read_store_info",
    "StoreInfo",
    "verify_store",
    "Damage",
    "repair_store",
    "Repair",
    "upgrade_store",
    "Upgrade",
    "find_format1",
    "remove_leftovers",
    "merge_stores",
    "Merge",
    "find_garbage",
    "find_unfinished",
    "remove_garbage",
    "Garbage",
    "Unfinished",
    "offer_test_lock",
    "check_test_lock",
    "write_features",
    "export_hdf5",
    "import_hdf5",
    "read_hdf5_spec",
    # errors
    "CacheError",
    "SpecError",
    "StoreMissingError",
    "NotAStoreError",
    "NewerStoreError",
    "OldFormatError",
    "SpecMismatchError",
    "FieldDifference",
    "ChangedDataError",
    "IncompleteStoreError",
    "DamagedStoreError",
    "MissingArrayError",
    "MissingRowsError",
    "MissingTargetError",
    "BatchError",
    "StoreLockedError",
    "StorageFullError",
    "NotWritableError",
]
