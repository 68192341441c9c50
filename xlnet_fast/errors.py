"""The exceptions of the package. Every message says what was wrong and what would be right.

Each class is also the builtin exception a caller would expect (`ValueError`, `RuntimeError`), so
code that knows nothing of this package still catches it.
"""

from __future__ import annotations


class XLNetFastError(Exception):
    """Base of every error raised on purpose by `xlnet_fast`."""


class ArgumentError(XLNetFastError, ValueError):
    """An argument has a value, type, dtype or device that cannot be used."""


class ShapeError(ArgumentError):
    """An argument has the wrong rank or shape."""


class BackendUnavailable(XLNetFastError, RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


class UnsupportedVersion(XLNetFastError, ImportError):
    """A library that is installed is too old; the message says which versions are supported."""


class NotFinite(XLNetFastError, ArithmeticError):
    """A model computed values that are no numbers."""


class BuildError(XLNetFastError, RuntimeError):
    """The C++ extension could not be built; the message says at which step and what would help."""


class PerformanceWarning(UserWarning):
    """The result is right, but something slower than need be makes it; the message says what."""
