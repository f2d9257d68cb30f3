"""What the system refused, as an error with four parts: a full disk, a limit of the shell, memory, a name that is too long.

Libraries report the same refusal as an OSError, as text in an error of their own (h5py, safetensors, torch), or while a module is
imported. It is recognised by the text of the system in any of these.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .errors import LayerbankError, RequestError, WorkError, first_line

_NO_THREAD, _DEVICE_FULL = -1, -2  # beside the numbers of errno
_LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TEXTS = {os.strerror(code): code for code in _LIMITS} | {
    "can't start new thread": _NO_THREAD,
    "CUDA out of memory": _DEVICE_FULL,
    "CUDA error: out of memory": _DEVICE_FULL,
    "MPS backend out of memory": _DEVICE_FULL,
    "can't allocate memory": errno.ENOMEM,  # torch
    "out of memory": errno.ENOMEM,
    "bad_alloc": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,  # of a library that is imported
}


def system_error(error: BaseException) -> LayerbankError | None:
    """The error of ours for a refusal of the system; None for an error of the program.

    >>> system_error(OSError(28, "No space left on device")).key, system_error(RuntimeError("a bug"))
    ('layerbank.disk_full', None)
    """
    if isinstance(error, BrokenPipeError):
        return None
    # of the errors before it only these end a command; others were handled
    asked = (one for one in _chain(error) if one is error or _code_of(one) in _TEXTS.values())
    return next((refused for one in asked if (refused := _refusal(one))), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _refusal(error: BaseException) -> LayerbankError | None:
    code = _code_of(error)
    place = getattr(error, "filename", None) or "a file of this command"
    values = {"place": place, "reason": getattr(error, "strerror", None) or first_line(error)}
    match code:
        case None:
            return None
        case errno.ENOSPC | errno.EDQUOT:
            return WorkError("layerbank.disk_full", **values)
        case errno.EFBIG:
            return WorkError("layerbank.file_too_large", **values)
        case errno.EMFILE | errno.ENFILE:
            return WorkError("layerbank.too_many_open_files", **values)
        case errno.ENOMEM:
            return WorkError("layerbank.out_of_memory", reason=values["reason"])
        case errno.ENAMETOOLONG:
            return RequestError("layerbank.name_too_long", place=values["place"])
    if code == _DEVICE_FULL:
        return WorkError("layerbank.out_of_device_memory", reason=values["reason"])
    if code == _NO_THREAD:
        return WorkError("layerbank.out_of_threads", reason=values["reason"])
    return WorkError("layerbank.file_error", **values)


def _code_of(error: BaseException) -> int | None:
    """Why the system refused, a number of errno; None for another error."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = str(error)
    return next((code for text, code in _TEXTS.items() if text in said), None)
