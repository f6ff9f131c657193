"""The process at the other end of `ProcessVectorEnv`: makes environments, steps them, answers.

Messages are JSON behind a length of four bytes, over a socket of their own, so that whatever an
environment prints cannot get between them. The process ends when the socket closes, be it because
its parent died.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
import traceback
from typing import Any

from sacglam.envs.protocol import validate_reset, validate_step
from sacglam.envs.registry import make_env
from sacglam.envs.vector import find, with_family
from sacglam.errors import SacglamError

_LENGTH = struct.Struct("<I")


def send(link: socket.socket, message: dict[str, Any]) -> None:
    """Sends a message. What JSON does not know, such as an array in `info`, goes as its repr."""
    data = json.dumps(message, default=_plain, skipkeys=True).encode()
    link.sendall(_LENGTH.pack(len(data)) + data)


def receive(link: socket.socket) -> dict[str, Any]:
    """The next message.

    Raises:
        EOFError: the other end is gone.
        TimeoutError: the socket's time limit passed.
    """
    (length,) = _LENGTH.unpack(_read(link, _LENGTH.size))
    message: dict[str, Any] = json.loads(_read(link, length))
    return message


def _read(link: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        try:
            part = link.recv(count - len(data))
        except ConnectionError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _plain(value: Any) -> Any:
    # NumPy scalars have item(); anything else is for people to read.
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0:
        return item()
    return repr(value)


def _handle(envs: dict[int, Any], request: dict[str, Any]) -> Any:
    i, op = request["env"], request["op"]
    if op == "make":
        envs[i] = make_env(request["id"], **request["kwargs"])
        return None
    if op == "reset":
        result = envs[i].reset(seed=request["seed"], options=request["options"])
        obs, info = validate_reset(result, env=i)
        return [obs, with_family(envs[i], info, i)]
    if op == "step":
        result = envs[i].step(request["action"])
        return list(validate_step(result, step=request["step"], env=i))
    if op == "call":
        return find(envs[i], request["name"])(*request["args"])
    if op == "attribute":
        try:
            return {"value": find(envs[i], request["name"])}
        except AttributeError:
            return {}
    raise ValueError(f"unknown request {op!r}")


def serve(link: socket.socket) -> None:
    """Answers requests until the socket closes."""
    envs: dict[int, Any] = {}
    try:
        while True:
            try:
                requests = receive(link)["requests"]
            except EOFError:
                return
            answers = []
            for request in requests:
                try:
                    answers.append({"result": _handle(envs, request)})
                except SacglamError as error:
                    answers.append({"error": type(error).__name__, "message": str(error)})
                except Exception as error:
                    text = f"{type(error).__name__}: {error}"
                    answers.append({"error": "", "message": text, "trace": traceback.format_exc()})
            send(link, {"answers": answers})
    finally:
        for env in envs.values():
            close = getattr(env, "close", None)
            if close is not None:
                close()


def main() -> None:
    """Serves the socket whose file descriptor is the first argument.

    SIGTERM, which schedulers send to every process of a job, and SIGHUP are for the caller, who may
    want to save first. A handler, since what an environment starts would inherit being deaf.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    with socket.socket(fileno=int(sys.argv[1])) as link:
        serve(link)


if __name__ == "__main__":
    main()
