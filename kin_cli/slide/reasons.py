"""Why a library refused a slide: not supported, not the slide of its set, or damaged. Each has its own way out."""

from __future__ import annotations

import re
from pathlib import Path

from kin_cli.errors import InputError
from kin_cli.slide.files import EXPORT_HINT

DAMAGED_HINT = "the file is damaged or incomplete; copy it again from its source, or look at it with another viewer"
_UNSUPPORTED = re.compile(
    r"unsupported(?! marker)|not supported|not implemented|cannot handle|can't handle|not available|unimplemented"
    r"|unknown (?:compression|image flavor|codec)|is not a known|requires? the 'imagecodecs'|DelayedImport|arithmetic"
    r"|no decode delegate|Not a WSI DICOM|NotImplemented|dissimilar main images|lossless JPEG|data precision",
    re.IGNORECASE,
)
_NONSENSE = (TypeError, AttributeError, ArithmeticError, AssertionError, KeyError, RecursionError)
_NONSENSE_TEXT = re.compile(r"truth value|could not convert|cannot reshape|invalid literal|ambiguous", re.IGNORECASE)
_OTHER_OF_SET = re.compile(
    r"no pyramid levels|couldn't find any pyramid|image flavor|can't find main image", re.IGNORECASE
)
_PART_MISSING = re.compile(
    r"no such file|couldn't open|can't load slidedat|can't open jpeg|can't load key", re.IGNORECASE
)
_NO_MEMORY = re.compile(
    r"out of memory|insufficient memory|unable to allocate|cannot allocate|couldn't allocate|MemoryError", re.IGNORECASE
)


def one_line(error: BaseException) -> str:
    """The message of an error on one line of at most 300 characters, repeated lines once."""
    lines = dict.fromkeys(" ".join(line.split()) for line in str(error).splitlines())
    text = " ".join(line for line in lines if line)
    if isinstance(error, _NONSENSE) or not text or _NONSENSE_TEXT.search(text):
        text = "its fields contradict each other"
    return text if len(text) <= 300 else text[:299] + "…"


def refusal(path: Path, what: str, error: BaseException) -> InputError:
    """The ``InputError`` for an error of a library about a file that was taken for ``what``, such as "TIFF"."""
    text = one_line(error)
    if _OTHER_OF_SET.search(text):
        which = (
            "the file of the largest level; labels, overviews and localizers of a DICOM slide are files of their own"
        )
        return InputError(f"{path}: a part of a {what} slide, but not its picture: {text}", f"name {which}")
    if _UNSUPPORTED.search(text) or isinstance(error, NotImplementedError):
        return InputError(f"{path}: stored in a way that kin cannot decode ({what}): {text}", EXPORT_HINT)
    if _PART_MISSING.search(text):
        return InputError(f"{path}: a file of this {what} slide is missing: {text}", "copy all its files and folders")
    if _NO_MEMORY.search(text) or isinstance(error, MemoryError):
        hint = "close other programs, or write the file again in tiles: vips tiffsave IN OUT --tile --pyramid"
        return InputError(f"{path}: not enough memory to decode it: {text}", hint)
    return InputError(f"{path}: not a readable {what}: {text}", DAMAGED_HINT)


def unread(path: Path, where: str, error: BaseException) -> InputError:
    """The ``InputError`` for a part of a slide that a library could not read."""
    text = one_line(error)
    if _UNSUPPORTED.search(text) or isinstance(error, NotImplementedError):
        return InputError(f"{path}: {where}: stored in a way that kin cannot decode: {text}", EXPORT_HINT)
    if _NO_MEMORY.search(text) or isinstance(error, MemoryError):
        return InputError(f"{path}: {where}: not enough memory: {text}", "close other programs")
    return InputError(f"{path}: {where}: {text}", DAMAGED_HINT)
