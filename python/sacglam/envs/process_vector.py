"""Many environments side by side in processes of their own, for environments that are slow."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from sacglam import errors
from sacglam.envs.protocol import Transition
from sacglam.envs.registry import portable_id
from sacglam.envs.vector import Ledger
from sacglam.envs.worker import receive, send
from sacglam.errors import ConfigError, EnvironmentWorkerError, SacglamError

__all__ = ["EnvironmentWorkerError", "ProcessVectorEnv"]

#: What an environment is made from: an id or a factory.
Made = str | Callable[..., Any]

#: Lines of a worker's output that are kept for the message of its death.
_KEPT_LINES = 20
#: Time that a worker gets to close its environments before it is killed.
_CLOSE_S = 5.0
#: How often a worker that does not answer is looked at [s].
_LOOK_S = 1.0


class ProcessVectorEnv:
    """The interface of `VectorEnv`, with the environments in worker processes.

    Worth it for environments that take longer than about 100 us a step; faster ones are faster in
    one process. Workers are fresh interpreters that make their environments by id, so the caller
    needs no `if __name__ == "__main__"`, and an environment's prints go nowhere.

    Args:
        specs: for every environment an id as for `make_env`, or a factory at the top level of a
            module; or a pair of one of these and keyword arguments, which must be plain data
            (JSON).
        workers: processes; environment i lives in process i mod workers. Default: one each.
        timeout_s: how long an answer may take, making the environment included.
        max_steps: as for `VectorEnv`.

    Raises:
        ConfigError: no environment is asked for, or one that another process cannot make;
            `max_steps` is below 1.
        EnvironmentWorkerError: a worker died or hung, now or at any later call. The vector cannot
            be used after that, but closed.
        SacglamError: whatever `make_env` raises.
    """

    def __init__(
        self,
        specs: Sequence[Made | tuple[Made, Mapping[str, Any]]],
        *,
        workers: int | None = None,
        timeout_s: float = 600.0,
        max_steps: int | None = None,
    ) -> None:
        self._ledger = Ledger(len(specs), max_steps)
        self._steps = [0] * len(specs)
        made = [
            (portable_id(spec[0]), dict(spec[1]))
            if isinstance(spec, tuple)
            else (portable_id(spec), {})
            for spec in specs
        ]
        count = len(specs) if workers is None else min(workers, len(specs))
        if count < 1:
            raise ConfigError(f"workers={workers}; give at least 1")
        self._workers: list[_Worker] = []
        # Also where nobody calls close: at the end of this object, or of the program.
        self._close = weakref.finalize(self, _end, self._workers)
        self._unusable = ""
        try:
            for k in range(count):
                self._workers.append(_Worker(k, timeout_s))
            self._ask(
                {i: {"op": "make", "id": id, "kwargs": kw} for i, (id, kw) in enumerate(made)}
            )
        except BaseException:
            self.close()
            raise

    @property
    def num_envs(self) -> int:
        """How many environments there are."""
        return len(self._steps)

    def reset(
        self, i: int, *, seed: int | None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """As in `VectorEnv`."""
        self._ledger.check_index(i)
        options = None if options is None else dict(options)
        answer = self._ask({i: {"op": "reset", "seed": seed, "options": options}})[i]
        self._steps[i] = 0
        return self._ledger.after_reset(i, tuple(answer))

    def step(self, actions: Mapping[int, str]) -> dict[int, Transition]:
        """As in `VectorEnv`, all workers at the same time."""
        for i, action in actions.items():
            self._ledger.check_action(i, action)
        for i in actions:
            self._steps[i] += 1
        answers = self._ask(
            {
                i: {"op": "step", "action": action, "step": self._steps[i]}
                for i, action in actions.items()
            }
        )
        return {i: self._ledger.after_step(i, tuple(answers[i])) for i in actions}

    def call(self, i: int, method: str, *args: Any) -> Any:
        """As in `VectorEnv`; arguments and result must be plain data (JSON)."""
        self._ledger.check_index(i)
        return self._ask({i: {"op": "call", "name": method, "args": list(args)}})[i]

    def attribute(self, i: int, name: str, default: Any = None) -> Any:
        """As in `VectorEnv`; the value must be plain data (JSON)."""
        self._ledger.check_index(i)
        return self._ask({i: {"op": "attribute", "name": name}})[i].get("value", default)

    def _ask(self, requests: dict[int, dict[str, Any]]) -> dict[int, Any]:
        """Sends every worker its requests, then collects all answers, before any error is raised:
        so the two ends never lose step with each other."""
        if not self._workers or self._unusable:
            why = self._unusable or "it is closed"
            raise EnvironmentWorkerError(
                f"this vector of environments cannot be used: {why}; make a new one"
            )
        self._unusable = "an earlier call was interrupted or failed"
        shares: dict[int, list[int]] = {}
        for i in requests:
            shares.setdefault(i % len(self._workers), []).append(i)
        for k, share in shares.items():
            self._workers[k].send([{"env": i, **requests[i]} for i in share])
        answers: dict[int, dict[str, Any]] = {}
        for k, share in shares.items():
            answers.update(zip(share, self._workers[k].receive(share), strict=True))
        self._unusable = ""
        for i in requests:
            if "error" in answers[i]:
                raise _error(i, answers[i])
        return {i: answer["result"] for i, answer in answers.items()}

    def close(self) -> None:
        """Closes the environments and ends the workers. May be called again."""
        self._close()

    def __enter__(self) -> ProcessVectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.end()
    workers.clear()


class _Worker:
    """A worker process and the socket to it."""

    def __init__(self, number: int, timeout_s: float) -> None:
        self._number = number
        self._timeout_s = timeout_s
        self._link, theirs = socket.socketpair()
        self._link.settimeout(timeout_s)
        self._ready = select.poll()
        self._ready.register(self._link, select.POLLIN)
        environ = dict(os.environ)
        # The worker must find what the caller finds, also after sys.path was changed.
        environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # Many workers with as many threads as there are cores would get in each other's way.
        environ.setdefault("OMP_NUM_THREADS", "1")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sacglam.envs.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environ,
                # Ctrl-C is for the caller, who may want to save before the workers end.
                start_new_session=True,
            )
        self._output: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        stream = self._process.stdout
        if stream is not None:
            with stream:
                for line in stream:
                    self._output.append(line.decode(errors="replace").rstrip())

    def send(self, requests: list[dict[str, Any]]) -> None:
        """Sends requests, without waiting for the answers."""
        try:
            send(self._link, {"requests": requests})
        except OSError:
            self._died([request["env"] for request in requests])

    def receive(self, share: list[int]) -> list[dict[str, Any]]:
        """The answers to the last requests, which concerned the environments `share`."""
        try:
            self._await_answer()
            answers: list[dict[str, Any]] = receive(self._link)["answers"]
        except TimeoutError:
            self._process.kill()
            raise EnvironmentWorkerError(
                f"the worker process {self._number} (environments {share}) gave no answer within "
                f"{self._timeout_s:g} s and was killed; give a larger timeout_s if the "
                "environment is that slow"
            ) from None
        except (EOFError, OSError):
            self._died(share)
        return answers

    def _await_answer(self) -> None:
        """Until there is something to read. The worker's death does not show at the socket where a
        process that an environment has started holds the other end as well.

        Raises:
            EOFError: the worker is dead.
            TimeoutError: there was nothing in time.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            left = deadline - time.monotonic()
            if self._ready.poll(1000 * min(_LOOK_S, max(0.0, left))):
                return
            if self._process.poll() is not None and not self._ready.poll(0):
                raise EOFError
            if left <= 0.0:
                raise TimeoutError

    def _died(self, share: list[int]) -> NoReturn:
        try:
            code = self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(_CLOSE_S)
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        said = "\n  ".join(self._output)
        raise EnvironmentWorkerError(
            f"the worker process {self._number} ended {how} while it ran the environments {share}; "
            "its steps since the last answer are lost. "
            + (f"The last that it printed:\n  {said}" if said else "It printed nothing.")
        ) from None

    def hang_up(self) -> None:
        """Closes the socket, which tells the worker to end."""
        self._link.close()

    def end(self) -> None:
        """Waits for the worker's end, for a while."""
        deadline = time.monotonic() + _CLOSE_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join(_CLOSE_S)


def _error(i: int, answer: dict[str, Any]) -> SacglamError:
    kind = getattr(errors, answer["error"], None) if answer["error"] else None
    if kind is not None:
        known: SacglamError = kind(answer["message"])
        return known
    trace = answer.get("trace", "")
    return EnvironmentWorkerError(
        f"environment {i} raised {answer['message']}"
        + (f"\nIn its worker process:\n{trace}" if trace else "")
    )
