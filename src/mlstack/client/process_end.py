"""Calls a function before this process ends: normally, through os._exit, or by SIGTERM or SIGHUP.

`atexit` is not enough. Children of multiprocessing end through os._exit (and forget what their parent had registered), and the
workers of a Pool are ended by SIGTERM. A forked child inherits what is registered here.
"""

import atexit
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)

_finishes: list[Callable[[], None]] = []
_registered_in: int | None = None  # process id: multiprocessing clears atexit in a forked child
_covered: tuple[int | None, ...] = ()  # this process id, and each signal's handler, when this process was last covered
_end_now = os._exit
# The operating system's handler of a signal. Python does not notice when C code (PyTorch's data loader) replaces it.
_in_place = ctypes.pythonapi.PyOS_getsig
_in_place.restype, _in_place.argtypes = ctypes.c_void_p, [ctypes.c_int]
_of_python: int | None = None  # the same for any handler that is written in Python


def call(finish: Callable[[], None]) -> None:
    """Registers a function. The process waits for it before it ends."""
    _finishes.append(finish)


def is_covered() -> bool:
    """Whether the registered functions are called at any end except SIGKILL or a crash; arranges it if possible.

    Not in a thread before the main thread has called this (only it may handle signals), and not if C code handles the signals.
    """
    global _registered_in, _covered  # noqa: PLW0603
    if _covered == _ends():
        return True
    if _registered_in != os.getpid():
        try:
            atexit.register(_finish)
        except RuntimeError:  # Python 3.13: too late, the process is ending
            return False
        _registered_in = os.getpid()
        os._exit = _finish_and_exit
    is_covered = all(map(_is_handled, ENDING))
    _covered = _ends() if is_covered else ()
    return is_covered


def _ends() -> tuple[int | None, ...]:
    return os.getpid(), *map(_in_place, ENDING)


def _is_handled(number: signal.Signals) -> bool:
    global _of_python  # noqa: PLW0603
    handler, in_place = signal.getsignal(number), _in_place(number)
    if handler is signal.SIG_DFL and in_place is None and threading.current_thread() is threading.main_thread():
        signal.signal(number, _finish_and_die)
        handler, in_place = _finish_and_die, _in_place(number)
    if callable(handler):  # the program's own handler ends it by an exception, an exit or os._exit
        _of_python = _of_python or in_place
        return bool(in_place == _of_python)
    return handler is signal.SIG_IGN


def _finish() -> None:
    for finish in _finishes:
        finish()


def _finish_and_exit(status: int) -> NoReturn:
    _finish()
    _end_now(status)


def _finish_and_die(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # the second signal ends the process at once
    _finish()
    os.kill(os.getpid(), number)
