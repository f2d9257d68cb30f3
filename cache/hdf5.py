"""A store as one HDF5 file, and back.

The file holds an array a dataset under the same names, the header as JSON, and the journal, so that an import is a round trip: the
same bytes in every file of the store (made by the same versions of zarr and numpy), and every chunk checked against its CRC-32C on the way.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .durable import storage_errors, sync_folder
from .errors import DamagedStoreError, NotAStoreError, SpecError
from .header import FORMAT, FORMAT_VERSION, Header, parse_header, read_header
from .journal import BatchNotes, Journal, parse_line
from .layout import CONTENT_HASHES, LABELS, SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS
from .mapping import ZarrRows
from .reader import SampleIds, TokenCache
from .writer import CacheWriter
