"""SIGTERM and Ctrl-C as a polite request to stop: finish what is being done, save, leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from wafergpt.errors import WaferGPTError


class Interrupted(WaferGPTError):  # noqa: N818 (nothing went wrong)
    """A signal asked training to stop, and everything was saved. Exit code 128 + signal number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number  # 130 after Ctrl-C, 143 after SIGTERM, as shells report them


class StopSignals:
    """Context manager: the first SIGINT or SIGTERM calls `request_stop`; a second one acts as it always did.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, request_stop: Callable[[], None]) -> None:
        self.received: int | None = None
        self._request_stop = request_stop
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self._request_stop()
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
