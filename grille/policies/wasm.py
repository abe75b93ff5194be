"""Rego in process: OPA's own compiler makes the WebAssembly, wasmtime runs it (OPA wasm ABI 1.3).

The data document is parsed once; each decision writes its input at the base of the heap and reads the answer back.
A decision may use `budget` units of wasmtime fuel (about one for each instruction) and `MAX_PAGES` of memory.

An evaluation that is interrupted does not give its frames on the policy's own stack back: these 64 KiB would be used up
after some thousand of them, and every later question would trap.  So after an evaluation that gave no answer the next
one begins with a fresh instance, which takes about a millisecond.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import wasmtime

from grille.policies.bundle import Bundle
from grille.policies.decision import Decision
from grille.policies.pdp import MAX_ANSWER, DecisionError, PolicyUnavailable, decode

PAGE: Final = 65536
MAX_PAGES: Final = 1024
"""64 MiB"""
MAX_INPUT: Final = 1 << 20
FUEL_PER_SECOND: Final = 400_000_000
"""Fuel that one second of a time-out stands for; an ordinary decision uses well under a million."""


class BundleError(Exception):
    """A bundle that cannot be put in force; the message names what is wrong with it."""


class WasmEngine:
    """One bundle, ready to decide.  Not safe for threads."""

    def __init__(self, bundle: Bundle, entrypoint: str, *, timeout: float = 0.25) -> None:
        """`timeout` (seconds) is turned into a budget of fuel.  Raises `BundleError`."""
        self.revision = bundle.revision
        self._budget = max(int(timeout * FUEL_PER_SECOND), 1_000_000)
        config = wasmtime.Config()
        config.consume_fuel = True
        config.max_wasm_stack = 1 << 20
        self._entrypoint_name = entrypoint
        self._aborted = ""
        self._usable = False
        try:
            self._data_json = json.dumps(bundle.data).encode()
            self._wasmtime = wasmtime.Engine(config)
            self._module = wasmtime.Module(self._wasmtime, bundle.wasm)
        except wasmtime.WasmtimeError as error:
            raise BundleError(f"policy.wasm is not a WebAssembly module: {error}") from None
        except (ValueError, RecursionError) as error:
            raise BundleError(f"data.json cannot be given to the policy: {error}") from None
        self._start()

    def _start(self) -> None:
        """Make a fresh instance and give it the data.  Raises `BundleError`."""
        try:
            self._instantiate()
        except BundleError:
            raise
        except Exception as error:  # whatever a strange module provokes is the bundle's fault
            raise BundleError(f"policy.wasm cannot be started: {self._aborted or error}") from None

    def _instantiate(self) -> None:
        self._store = store = wasmtime.Store(self._wasmtime)
        store.set_limits(memory_size=MAX_PAGES * PAGE)
        store.set_fuel(FUEL_PER_SECOND * 10)
        self._memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(2, MAX_PAGES)))
        linker = wasmtime.Linker(self._wasmtime)
        linker.define(store, "env", "memory", self._memory)
        i32 = wasmtime.ValType.i32()
        linker.define(store, "env", "opa_abort", wasmtime.Func(store, wasmtime.FuncType([i32], []), self._abort))
        linker.define(store, "env", "opa_println", wasmtime.Func(store, wasmtime.FuncType([i32], []), _silent))
        for count in range(5):
            kind = wasmtime.FuncType([i32] * (2 + count), [i32])
            linker.define(store, "env", f"opa_builtin{count}", wasmtime.Func(store, kind, _no_builtin))
        exports: Any = linker.instantiate(store, self._module).exports(store)
        self._exports = exports
        major, minor = (exports[f"opa_wasm_abi_{part}version"].value(store) for part in ("", "minor_"))
        if major != 1 or minor < 2:
            raise BundleError(f"policy.wasm has ABI {major}.{minor}; 1.2 or later is needed")
        wanted = self._json(exports["builtins"](store))
        if wanted:
            names = ", ".join(sorted(wanted))
            raise BundleError(f"the policy calls built-in functions that are not provided: {names}")
        entrypoints = self._json(exports["entrypoints"](store))
        if self._entrypoint_name not in entrypoints:
            known = ", ".join(sorted(entrypoints)) or "none"
            raise BundleError(f'the bundle has no entrypoint "{self._entrypoint_name}" (it has: {known})')
        self._entrypoint = entrypoints[self._entrypoint_name]
        data = self._data_json
        address = exports["opa_malloc"](store, len(data))
        self._memory.write(store, data, address)
        self._data = exports["opa_json_parse"](store, address, len(data))
        if not self._data:
            raise BundleError("data.json cannot be parsed by the policy")
        self._heap = exports["opa_heap_ptr_get"](store)
        self._eval = exports["opa_eval"]
        self._usable = True

    def decide(self, document: bytes) -> Decision:
        """The decision for one policy input.  Raises `PolicyUnavailable` or `DecisionError`."""
        if len(document) > MAX_INPUT:
            raise PolicyUnavailable("the policy input is too long")
        if not self._usable:
            try:
                self._start()
            except BundleError as error:
                raise PolicyUnavailable(f"the policy cannot be started again: {error}") from None
        self._usable = False
        self._aborted = ""
        raw = self._evaluate(document)
        self._usable = True
        try:
            answers = msgspec.json.decode(raw, type=list[dict[str, msgspec.Raw]])
        except msgspec.MsgspecError:
            raise DecisionError("the answer is not a result set") from None
        if len(answers) != 1 or set(answers[0]) != {"result"}:
            raise PolicyUnavailable("the policy's answer is undefined")
        return decode(bytes(answers[0]["result"]))

    def _evaluate(self, document: bytes) -> bytes:
        """The policy's answer, a JSON array of results.  Raises `PolicyUnavailable`."""
        store = self._store
        try:
            store.set_fuel(self._budget)
            end = self._heap + len(document)
            missing = end - self._memory.data_len(store)
            if missing > 0:
                self._memory.grow(store, missing // PAGE + 1)
            self._memory.write(store, document, self._heap)
            address = self._eval(store, 0, self._entrypoint, self._data, self._heap, len(document), end, 0)
            return self._text(address)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            reason = "it ran out of time" if "fuel" in str(error) else self._aborted or "it trapped"
            raise PolicyUnavailable(f"the policy gave no answer: {reason}") from None

    def _abort(self, address: int) -> None:
        self._aborted = self._text(address).decode(errors="replace")[:500]
        raise wasmtime.WasmtimeError(f"the policy aborted: {self._aborted}")

    def _json(self, address: int) -> Any:
        """A value of the policy as JSON."""
        return json.loads(self._text(self._exports["opa_json_dump"](self._store, address)))

    def _text(self, address: int) -> bytes:
        """The C string at `address`."""
        size = self._memory.data_len(self._store)
        for length in (4096, MAX_ANSWER):
            chunk = bytes(self._memory.read(self._store, address, min(address + length, size)))
            end = chunk.find(0)
            if end >= 0:
                return chunk[:end]
        raise PolicyUnavailable("the policy's answer is too long")


def _silent(_address: int) -> None:
    """opa_println: policies do not print."""


def _no_builtin(*_arguments: int) -> int:
    raise wasmtime.WasmtimeError("no built-in function is provided")
