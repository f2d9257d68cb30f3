"""The kinds of data source, a file each. `layerbank.data.sources.open_source` chooses one by a URI's scheme."""

from .demo import DemoSource
from .folder import FolderSource
from .hdf5 import Hdf5Source
from .image_source import BadImage, ImageSource
from .unlabelled import UnlabelledSource
from .views import ViewedSource, ViewRule
from .wds import WdsSource

__all__ = [
    "ImageSource",
    "BadImage",
    "FolderSource",
    "WdsSource",
    "Hdf5Source",
    "DemoSource",
    "UnlabelledSource",
    "ViewedSource",
    "ViewRule",
]
