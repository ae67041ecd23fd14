"""Every suite starts from the same signals and imports, however the tests were started."""

from __future__ import annotations

import importlib
import signal


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would every process the tests start from it.

    torch.compile imports setuptools, which refuses to be imported once distutils or pip has been.
    """
    importlib.import_module("setuptools")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
