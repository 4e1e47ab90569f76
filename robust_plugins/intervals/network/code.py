"""`Reads`: which names the code of a forward looks up, told from its bytecode; nothing of it is run.

Only code that cannot keep anything, and looks up nothing but names written in it, is understood. Anything else (other
opcodes, closures, imports, attributes that are set) makes the answer None, and whoever asked has to run the code.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

_NAMED = {"LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"}
_INNOCENT = {
    "BINARY_OP", "BINARY_SLICE", "BINARY_SUBSCR", "BUILD_CONST_KEY_MAP", "BUILD_LIST", "BUILD_MAP", "BUILD_SLICE",
    "BUILD_TUPLE", "CACHE", "CALL", "CALL_FUNCTION_EX", "CALL_INTRINSIC_1", "CALL_KW", "COMPARE_OP", "CONTAINS_OP",
    "COPY", "COPY_FREE_VARS", "DELETE_FAST", "DICT_MERGE", "DICT_UPDATE", "END_FOR", "EXTENDED_ARG", "FOR_ITER",
    "GET_ITER", "GET_LEN", "IS_OP", "JUMP_BACKWARD", "JUMP_FORWARD", "JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP",
    "KW_NAMES", "LIST_APPEND", "LIST_EXTEND", "LOAD_ASSERTION_ERROR", "LOAD_CLOSURE", "LOAD_CONST", "LOAD_DEREF",
    "LOAD_FAST", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_BORROW", "LOAD_FAST_BORROW_LOAD_FAST_BORROW", "LOAD_FAST_CHECK",
    "LOAD_FAST_LOAD_FAST", "LOAD_SMALL_INT", "MAKE_FUNCTION", "NOP", "NOT_TAKEN", "POP_ITER",
    "POP_JUMP_BACKWARD_IF_FALSE", "POP_JUMP_BACKWARD_IF_NONE", "POP_JUMP_BACKWARD_IF_NOT_NONE",
    "POP_JUMP_BACKWARD_IF_TRUE", "POP_JUMP_FORWARD_IF_FALSE", "POP_JUMP_FORWARD_IF_NONE",
    "POP_JUMP_FORWARD_IF_NOT_NONE", "POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_IF_FALSE", "POP_JUMP_IF_NONE",
    "POP_JUMP_IF_NOT_NONE", "POP_JUMP_IF_TRUE", "POP_TOP", "PRECALL", "PUSH_NULL", "RAISE_VARARGS", "RESUME",
    "RETURN_CONST", "RETURN_VALUE", "STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST", "SWAP", "TO_BOOL",
    "UNARY_INVERT", "UNARY_NEGATIVE", "UNARY_NOT", "UNARY_POSITIVE", "UNPACK_EX", "UNPACK_SEQUENCE",
}  # fmt: skip
_VARIABLES = ("__class__",)
"""Those that a function may close over: what `super()` needs."""


@dataclass(frozen=True)
class Reads:
    """The names that code looks up."""

    chains: tuple[tuple[str, ...], ...]
    """Each global name, with the attributes that are looked up on it at once: ("F", "relu")."""
    attributes: frozenset[str]
    """Every other attribute."""


@lru_cache(maxsize=4096)
def reads(code: CodeType) -> Reads | None:
    """The names that `code`, and that of functions inside it, looks up; None where it does more than that."""
    chains: dict[tuple[str, ...], None] = {}
    attributes: set[str] = set()
    if not (set(code.co_freevars) <= set(_VARIABLES) and not code.co_cellvars and not code.co_exceptiontable):
        return None
    for opcode, name, chain in _instructions(code):
        if opcode not in _NAMED and opcode not in _INNOCENT:
            return None
        if chain:
            chains[chain] = None
        elif opcode in _NAMED:
            attributes.add(name)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = reads(constant)
            if inner is None:
                return None
            chains |= dict.fromkeys(inner.chains)
            attributes |= inner.attributes
    return Reads(tuple(chains), frozenset(attributes))


def _instructions(code: CodeType) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Each instruction's name and argument; for a global name, and the attributes right behind it, once as a chain."""
    chain: tuple[str, ...] = ()
    for instruction in dis.get_instructions(code):
        opcode, name = instruction.opname, str(instruction.argval)
        if opcode == "CACHE" or opcode == "EXTENDED_ARG":
            continue
        if chain and opcode in ("LOAD_ATTR", "LOAD_METHOD") and not instruction.is_jump_target:
            chain = (*chain, name)
            continue
        if chain:
            yield "LOAD_GLOBAL", chain[0], chain
            chain = ()
        if opcode == "LOAD_GLOBAL":
            chain = (name,)
        else:
            yield opcode, name, ()
