"""A function in a process of its own, which ends with this one and talks while it works.

The child is a plain interpreter that is told which function to call, so that the caller's `__main__`
is never run again (as multiprocessing does, to the surprise of scripts and notebooks). Both ends
speak over one pipe; when the parent dies, by `kill -9` too, the pipe closes and the child leaves.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self

from serving.errors import EngineError, WorkbenchError

_GRACE_S = 5.0


class Link:
    """The child's end: `send` any value to the parent, `receive` what the parent sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: Any) -> None:
        self._connection.send((False, message))

    def receive(self) -> Any:
        return self._inbox.get()

    def _listen(self) -> None:
        while True:
            try:
                self._inbox.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(1)  # nobody is left to work for


class Child:
    """Calls `function(link, *arguments)` in a child process; iterate to get what it sends.

    Args:    function: a module-level function; with its arguments it has to be picklable.
             environment: variables that differ from this process's.
    Raises:  while iterating: the WorkbenchError that the function raised; EngineError where the
             process ended without a word; RuntimeError for any other exception in it.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = function.__name__
        self._here, there = Pipe()
        descriptor = there.fileno()
        path = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from workbench.apart import serve; serve({descriptor})"],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        )
        there.close()
        self._here.send((_module(function), function.__qualname__, arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._here.close()
        if exc[0] is not None:
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def connection(self) -> Connection:
        """To wait on several children at once."""
        return self._here

    def send(self, message: Any) -> None:
        self._here.send(message)

    def receive(self) -> tuple[bool, Any]:
        """(True, None) when the function returned, else (False, what it sent)."""
        try:
            ended, message = self._here.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            raise EngineError(
                f"the process of `{self.name}` ended with {how}",
                remedy="Is there enough memory? What it printed last says more.",
            ) from None
        if isinstance(message, BaseException):
            raise message
        return ended, message

    def __iter__(self) -> Iterator[Any]:
        while True:
            ended, message = self.receive()
            if ended:
                return
            yield message


def _module(function: Callable[..., object]) -> str:
    """Where the child finds the function, also when the module is run as `python -m ...`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if function.__module__ == "__main__" and spec is not None:
        return str(spec.name)
    return function.__module__


def serve(descriptor: int) -> None:
    """The child's side."""
    # Ctrl-C reaches the whole group; the parent decides what becomes of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    module, name, arguments = connection.recv()
    last: BaseException | None = None
    try:
        getattr(importlib.import_module(module), name)(Link(connection), *arguments)
    except WorkbenchError as error:
        traceback.print_exc()
        last = error
    except Exception as error:
        traceback.print_exc()
        last = RuntimeError(f"{type(error).__name__}: {error}")
    with suppress(OSError):
        connection.send((True, last))
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries leave threads that would block an ordinary exit.
    os._exit(0 if last is None else 1)
