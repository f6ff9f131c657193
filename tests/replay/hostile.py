"""What the scripts of this folder share: values that are wrong in some way, damaged checkpoint
files, the choice of the extension, and calls in threads."""

from __future__ import annotations

import importlib.util
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

TEXTS, SETS = 8, 3  # interned by the fuzzer


def use_extension(path: str | None) -> None:
    """Take the native module from `path`, not the one that is installed."""
    if path is not None:
        spec = importlib.util.spec_from_file_location("sacglam._C", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["sacglam._C"] = module
        spec.loader.exec_module(module)


def at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Each in a thread of its own, to its end; then what the first of them raised, if any did."""
    failures: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# ---- hostile values


def fail_inside(*_: Any) -> Any:
    raise RuntimeError("a hostile object")


class Index:
    """An integer to Python, by a method that does something first."""

    def __init__(self, act: Callable[[], int]) -> None:
        self.act = act

    def __index__(self) -> int:
        return self.act()


class NoText:
    """An object that cannot be shown."""

    __repr__ = fail_inside  # type: ignore[assignment]


class ArrayLike:
    """An array to numpy, by a method that does something first."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.act()


class Hostile:
    """Values that are wrong in some way, from one generator."""

    def __init__(self, rng: random.Random, buffer: Any) -> None:
        self.rng, self.buffer = rng, buffer

    def scalar(self) -> Any:
        rng = self.rng
        return rng.choice([
            -1, 0, 1, 3, TEXTS, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, 2**63, 2**64, 2**70,
            -(2**63), -(2**70), True, None, 1.5, float("nan"), float("inf"), "1", b"1", (), [1],
            {}, object(), np.int8(3), np.uint64(2**64 - 1), np.int64(-(2**63)), np.float32(1),
            np.bool_(True), np.array(2), np.array([2]), np.array([], int), np.datetime64(5, "s"),
            Index(fail_inside), Index(lambda: 2**200), Index(self.close), 3j, 10**400, 10**5000,
            NoText(), "\ud800", "a\0b", Index(lambda: 10**5000),
        ])  # fmt: skip

    def close(self) -> int:
        self.buffer.close()
        return 1

    def array(self) -> Any:
        """Anything but a plain array of small integers; sometimes that."""
        rng = self.rng
        size = rng.choice([0, 1, 2, 3, 4, 9, 100, 3000])
        dtype = rng.choice([
            "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g", "c8", "O",
            "U3", "S3", "M8[s]", "m8[s]", ">i4", ">i8", ">f4", "i4,i4", "V5",
        ])  # fmt: skip
        with np.errstate(all="ignore"):
            a = np.zeros(size, dtype)
            if a.dtype.kind in "iuf":
                values = np.array([rng.randrange(-2, TEXTS + 2) for _ in range(size)])
                a[:] = values.astype(a.dtype)
                if size and rng.random() < 0.5:
                    most = np.finfo(a.dtype) if a.dtype.kind == "f" else np.iinfo(a.dtype)
                    a[rng.randrange(size)] = rng.choice([most.max, most.min])
                if a.dtype.kind == "f" and size and rng.random() < 0.5:
                    a[rng.randrange(size)] = rng.choice([np.nan, np.inf, -np.inf])
        return rng.choice([
            lambda: a, lambda: a.reshape(1, -1), lambda: a.reshape(-1, 1), lambda: a[::-1],
            lambda: a[::2], lambda: np.repeat(a, 2)[1::2], lambda: a.tolist(), lambda: (*a,),
            lambda: np.broadcast_to(np.int32(1), (size,)), lambda: self.readonly(a),
            lambda: np.broadcast_to(np.int32(1), (2**40,)),
            lambda: np.broadcast_to(np.float64(1), (2**45,)),
            lambda: np.frombuffer(bytearray(4 * size + 1), np.uint8)[1:].view("i4"),
            lambda: np.ma.masked_array(a), lambda: memoryview(a.tobytes()),
            lambda: bytearray(a.tobytes()), lambda: range(size), lambda: iter([1, 2]),
            lambda: [[1], [1, 2]], lambda: [1, "x", None], lambda: {1: 2}, lambda: "abc",
            lambda: None, lambda: 7, lambda: np.array(7), lambda: ArrayLike(fail_inside),
            lambda: ArrayLike(lambda: (self.close(), np.array([0, 1], "i4"))[1]),
            lambda: ArrayLike(lambda: "x"), lambda: [Index(lambda: 1)] * 2, lambda: [2**80],
        ])()  # fmt: skip

    @staticmethod
    def readonly(a: np.ndarray) -> np.ndarray:
        a.flags.writeable = False
        return a


# ---- damaged files


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint with faults; often with its checksums made good again, so that what they would
    have refused reaches the reader behind them."""
    body = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        header = 40 if len(body) > 40 and rng.random() < 0.7 else 0
        at = rng.randrange(header, len(body))
        kind = rng.randrange(5)
        if kind == 0:
            body[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del body[at:]
            body += b"\0" * (40 - len(body))
        elif kind == 2:
            del body[at : at + rng.choice([1, 4, 8])]
            body += b"\0" * (40 - len(body))
        elif kind == 3:
            word = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1, 2**60 + 1, 7])
            body[at : at + 8] = word.to_bytes(8, "little")
        else:
            body[at:at] = rng.randbytes(rng.choice([1, 4, 8]))
    return resealed(body) if rng.random() < 0.8 else bytes(body)


def resealed(body: bytearray) -> bytes:
    """A checkpoint with its sizes and checksums made good."""
    payload = bytes(body[40:])
    struct.pack_into("<QQ", body, 16, len(payload), checksum(payload))
    struct.pack_into("<Q", body, 32, checksum(bytes(body[:32])))
    return bytes(body)


MASK = 2**64 - 1


def mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def checksum(data: bytes) -> int:
    """As in replay_file.hpp."""
    h = mix64(len(data) + 1)
    whole = len(data) // 8 * 8
    for (word,) in struct.iter_unpack("<Q", data[:whole]):
        h = mix64(h ^ word)
    return mix64(h ^ int.from_bytes(data[whole:], "little"))
