"""Calls a function before this process ends: normally, through os._exit, or by SIGTERM or SIGHUP.

`atexit` is not enough. Children of multiprocessing end through os._exit (and forget what their parent had registered), and the
workers of a Pool are ended by SIGTERM. A forked child inherits what is registered here, but not the handlers of signals: it gets
its own with its first use.
"""

import atexit
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)
WAKING = signal.SIGURG  # interrupts a call that waits; without a handler the operating system ignores it

_finishes: list[Callable[[], None]] = []
_registered_in: int | None = None  # process id: multiprocessing clears atexit in a forked child
_covered: tuple[int | None, ...] = ()  # this process id, and each signal's handler, when this process was last covered
_end_now = os._exit
# The operating system's handler of a signal. Python does not notice when C code (PyTorch's data loader) replaces it.
_in_place = ctypes.pythonapi.PyOS_getsig
_in_place.restype, _in_place.argtypes = ctypes.c_void_p, [ctypes.c_int]
_of_python: int | None = None  # the same for any handler that is written in Python
_arrivals: tuple[int, int] | None = None  # a pipe: the numbers of signals that arrived, for the thread that wakes the main thread
_forking = threading.local()


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
        _watch()
        handler, in_place = _finish_and_die, _in_place(number)
    if callable(handler):  # the program's own handler ends it by an exception, an exit or os._exit
        _of_python = _of_python or in_place
        return bool(in_place == _of_python)
    return handler is signal.SIG_IGN


def _watch() -> None:
    """Starts the thread that wakes the main thread for a signal, unless the program watches its signals (asyncio does).

    Python runs a handler between two instructions of the main thread. Without this, a signal that arrives just before a call that
    waits would wait as long as the call: a worker of a Pool forever, and its parent with it.
    """
    global _arrivals  # noqa: PLW0603
    if _arrivals or signal.getsignal(WAKING) is not signal.SIG_DFL:
        return
    others = signal.set_wakeup_fd(-1)
    if others != -1:
        signal.set_wakeup_fd(others)
        return
    received, sent = _arrivals = os.pipe()
    os.set_blocking(sent, False)
    signal.signal(WAKING, lambda *_: None)
    threading.Thread(target=_wake, args=(received, threading.get_ident()), name="mlstack-signals", daemon=True).start()
    signal.set_wakeup_fd(sent, warn_on_full_buffer=False)


def _wake(received: int, main: int) -> None:
    while number := os.read(received, 1):
        for _ in range(50):
            if number[0] not in ENDING or signal.getsignal(number[0]) is not _finish_and_die:
                break  # the handler has begun
            time.sleep(0.1)
            signal.pthread_kill(main, WAKING)


def _before_fork() -> None:
    """A signal that reaches the child before its handlers are reset would be lost."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    """A child has no thread that wakes it, and nothing to finish yet: signals end it as if this module were not there."""
    global _arrivals  # noqa: PLW0603
    for number in ENDING:
        if signal.getsignal(number) is _finish_and_die:
            signal.signal(number, signal.SIG_DFL)
    if _arrivals:
        others = signal.set_wakeup_fd(-1)
        if others != _arrivals[1]:
            signal.set_wakeup_fd(others)
        signal.signal(WAKING, signal.SIG_DFL)
        for end in _arrivals:
            os.close(end)
        _arrivals = None
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


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
