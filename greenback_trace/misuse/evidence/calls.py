"""Whether a function was called by the code of its caller, or by the interpreter.

Finalizers, callbacks of weak references and signal handlers have as ``f_back`` the frame that
happened to run. The instruction of that frame tells them from functions that it has called. An
instruction that calls nothing decides at once. For a call, `executing` finds its expression in the
source, a part of the file at a time, and `pure_eval` evaluates that without running anything.
"""

from __future__ import annotations

import ast
import itertools
import sys
import types
from collections import ChainMap, deque
from types import FrameType
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from greenlet import getcurrent

from greenback._frames import around_worker, is_worker

from ...count.frames import locals_of
from .instructions import IS_PYPY_11, instruction, is_call, is_inert, loaded_before
from .source import Part
from .values import (
    GENERATORS,
    IN_C,
    arguments_of,
    attributes_with,
    class_attribute,
    code_of,
    leads_to,
)

try:
    from executing import Source
    from pure_eval import CannotEval, Evaluator
except ImportError:  # without greenback[debug]
    Source = None  # type: ignore[assignment,misc]

_IS_CPYTHON = sys.implementation.name == "cpython"
#: Instructions whose names begin like this take items from an iterator, which may call a function.
_ITERATES = (
    "BUILD_LIST_UNPACK",
    "BUILD_SET_UNPACK",
    "BUILD_TUPLE_UNPACK",
    "COMPARE_",
    "CONTAINS_",
    "DICT_",
    "FOR_ITER",
    "INPLACE_",
    "LIST_EXTEND",
    "SEND",
    "SET_UPDATE",
    "UNPACK_",
    "YIELD_FROM",
)
#: The operators of BINARY_OP that change their left operand.
_IN_PLACE = range(13, 26)
_WITH = ("__enter__", "__exit__", "__aenter__", "__aexit__")
_WITH_INSTRUCTIONS = ("BEFORE_", "LOAD_SPECIAL", "SETUP_", "WITH_")
#: Modules in C whose functions and methods call neither their arguments nor callables kept earlier.
_CALLS_NO_ARGUMENT = frozenset(
    (
        "_io", "_queue", "_signal", "_socket", "_thread", "_weakref", "errno", "gc", "greenlet",
        "greenlet._greenlet", "math", "nt", "posix", "pyexpat", "select", "signal", "time", "zlib",
    )
)  # fmt: skip
_CONTAINERS: Tuple[type, ...] = (
    bytearray, bytes, complex, deque, dict, float, frozenset, int, list, range, set, str, tuple,
    type({}.items()), type({}.keys()), type({}.values()), types.ModuleType, type(None),
)  # fmt: skip
_STATEMENTS: Dict[str, Any] = {"FOR_ITE": ast.For, "INPLACE": ast.AugAssign}
_EMPTY: Tuple[Any, ...] = ((), [], "", b"", {}, set(), range(0), {}.values(), {}.items())
#: Iterators that only hand out the items of a container.
_ITERATORS = tuple(type(iter(each)) for each in _EMPTY)
_UNKNOWN = object()
_HAND_OUT = _CONTAINERS + GENERATORS + _ITERATORS
#: Iterators whose items come from the iterators that they are given.
_COMBINES = (enumerate, reversed, zip, range, list, tuple, sorted, set, iter)


class Origin(NamedTuple):
    """How a function came to be called."""

    #: Whether its caller's code called it; None if the evidence leaves that open.
    explicit: Optional[bool]
    #: The sentence that says why.
    evidence: str


def how_called(
    frame: FrameType,
    caller: FrameType,
    is_it: Optional[Callable[[Any], bool]] = None,
    names: Tuple[str, ...] = (),
    handed: Any = None,
) -> Origin:
    """How *frame* came to be called while *caller* was running.

    Args:
        frame: A frame.
        caller: Its ``f_back``; `around_worker` if it has none.
        is_it: Says whether a value is the callable that an explicit call would have called.
            Without it: whether calling the value runs the code of *frame*.
        names: Where what is called cannot be evaluated, a call of an attribute with one of these
            names counts as explicit.
        handed: The last of several arguments that an explicit call would have passed.
    """
    if is_it is None:
        is_it = leads_to(frame.f_code)
    if caller is around_worker:
        return _by_worker(is_it)
    name, offset = instruction(caller)
    where = f"{caller.f_code.co_name}() at line {caller.f_lineno}"
    if is_inert(name):
        return Origin(False, f"{where} was at the instruction {name}, which calls nothing")
    if is_call(name):
        return _by_call(frame, caller, offset, where, is_it, names, handed)
    if name.startswith(_ITERATES) or (
        name == "BINARY_OP" and caller.f_code.co_code[offset + 1] in _IN_PLACE
    ):
        return _by_iteration(caller, where, name)
    if name.startswith(_WITH_INSTRUCTIONS) and _is_operator(frame, _WITH):
        return Origin(True, f"{where} was entering or leaving a with block")
    if _is_operator(frame):
        return Origin(None, f"{where} was at {name}, which may call a special method")
    return Origin(False, f"{where} was at the instruction {name}, which has no such method to call")


def _is_operator(frame: FrameType, which: Tuple[str, ...] = ()) -> bool:
    """Whether the first argument has a special method or a descriptor with the frame's code.

    Args:
        frame: A frame.
        which: The special methods to look at; if empty, all that operators call.
    """
    arguments = arguments_of(frame)
    if not arguments:
        return False
    for name, value in attributes_with(type(arguments[0]), frame.f_code):
        if which:
            if name in which:
                return True
        elif type(value) is not types.FunctionType or (
            name.startswith("__") and name not in ("__del__", "__call__")
        ):
            return True
    return False


def _by_iteration(caller: FrameType, where: str, name: str) -> Origin:
    unknown = Origin(None, f"{where} was at {name}, and what it iterates over could call it")
    iterated = _iterated(_node(caller))
    if iterated is not None and _only_iterates(iterated, _evaluator(caller)):
        return Origin(False, f"{where} was at {name}, and what it iterates over calls nothing")
    return unknown


def _iterated(node: Any) -> Optional[ast.expr]:
    """The expression from whose value a part of the source takes items, if that is clear."""
    if isinstance(getattr(node, "ctx", None), ast.Store):
        node = node.parent
    if isinstance(node, (ast.For, ast.comprehension)):
        return node.iter
    if isinstance(node, ast.Compare):
        return node.comparators[0] if len(node.ops) == 1 else None
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Starred, ast.YieldFrom)):
        return node.value
    return None


def _only_iterates(node: ast.expr, evaluator: Any) -> bool:
    """Whether iterating over the value of an expression calls nothing but Python functions."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.GeneratorExp)):
        return True
    if not isinstance(node, ast.Call):
        try:
            return type(evaluator[node]) in _HAND_OUT
        except CannotEval:
            return False
    try:
        function = evaluator[node.func]
    except CannotEval:
        return False
    if any(function is each for each in _COMBINES):
        return all(_only_iterates(each, evaluator) for each in node.args)
    if type(getattr(function, "__self__", None)) in _CONTAINERS:
        return True  # it does not iterate over its arguments
    code = next(code_of(function), None)
    return code is not None and bool(code.co_flags & 0x20)


def _by_call(
    frame: FrameType,
    caller: FrameType,
    offset: int,
    where: str,
    is_it: Callable[[Any], bool],
    names: Tuple[str, ...],
    handed: Any,
) -> Origin:
    loads = loaded_before(caller.f_code, offset)
    if loads is not None and loads.opname == "LOAD_SPECIAL":  # from 3.14 on
        return Origin(_is_operator(frame, _WITH), f"{where} was entering a with block")
    if Source is None:
        return Origin(
            None, f"{where} was calling something; greenback[debug] is needed to see what"
        )
    node = _node(caller)
    if not isinstance(node, ast.Call):
        if isinstance(node, (ast.With, ast.AsyncWith)) or (
            # Before 3.11, a block ends with this instruction.
            loads is not None and loads.opname == "POP_BLOCK"
        ):
            return Origin(
                _is_operator(frame, _WITH), f"{where} was entering or leaving a with block"
            )
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp)) or (
            loads is not None and loads.opname == "MAKE_FUNCTION"
        ):
            return Origin(False, f"{where} was calling a comprehension")
        return Origin(None, f"{where} was calling something that its source does not show")
    text = _text(node.func) + "()"
    evaluator = _evaluator(caller)
    try:
        function = evaluator[node.func]
    except CannotEval:
        if isinstance(node.func, ast.Attribute) and node.func.attr in names:
            return Origin(True, f"{where} was calling {text}")
        if handed is not None and _passes_only_scalars(node, evaluator):
            return Origin(False, f"{where} was calling {text} with other arguments")
        return Origin(None, f"{where} was calling {text}, and what that is cannot be seen")
    arguments = [each.value if isinstance(each, ast.Starred) else each for each in node.args]
    arguments += [each.value for each in node.keywords]
    return _by_function(
        f"{where} was calling {text}", function, _values(arguments, evaluator), is_it
    )


def _values(expressions: List[ast.expr], evaluator: Any) -> Iterator[Any]:
    for each in expressions:
        try:
            yield evaluator[each]
        except CannotEval:
            yield _UNKNOWN


def _by_function(
    calling: str, function: Any, arguments: Iterable[Any], is_it: Callable[[Any], bool]
) -> Origin:
    """Whether a call of *function* with *arguments* is what has called it.

    Args:
        calling: The beginning of the sentence that says so.
        arguments: `_UNKNOWN` stands for one that cannot be seen.
    """
    if is_it(function):
        return Origin(True, f"{calling}, which is it")
    if any(True for _ in code_of(function)) or _is_python_class(function):
        return Origin(False, f"{calling}, which is something else")
    # A function in C may call its arguments, or callables that it was given before.
    if _is_harmless(function):
        return Origin(False, f"{calling}, which calls none of its arguments")
    leads = not _holds_nothing(function)
    for value in arguments:
        if value is _UNKNOWN:
            leads = True
        elif is_it(value) or (type(value) in (list, tuple) and any(is_it(item) for item in value)):
            return Origin(True, f"{calling} and passed it")
        elif not issubclass(type(value), (*_HAND_OUT, type)):
            leads = leads or (not any(True for _ in code_of(value)) and not _is_of_program(value))
    if leads:
        return Origin(None, f"{calling}, which may call what it was given")
    return Origin(False, f"{calling}, which was not given it")


def _by_worker(is_it: Callable[[Any], bool]) -> Origin:
    """How the outermost function in a worker came to be called, if that is in C: it has no frame.

    A worker calls one function, with which its portal was opened, or steps a coroutine.
    """
    here: Any = getcurrent()
    while not is_worker(here):
        here = here.parent
    portal = here.portal
    if portal is not None and is_it(portal.function):
        return Origin(True, "the portal was calling it")
    if portal is None or portal.function is None or portal.run is not None:
        return Origin(None, "the portal was running a coroutine")
    arguments = (*portal.args, *(portal.kwds or {}).values())
    return _by_function("the portal was calling its function", portal.function, arguments, is_it)


def _passes_only_scalars(node: ast.Call, evaluator: Any) -> bool:
    if not node.args or node.keywords:
        return False
    try:
        return all(
            type(evaluator[each]) in (int, float, str, bytes, bool, type(None))
            for each in node.args
        )
    except CannotEval:
        return False


def _is_python_class(value: Any) -> bool:
    """Whether calling a value runs a constructor in Python, which would then be the caller."""
    return issubclass(type(value), type) and any(
        True for name in ("__init__", "__new__") for _ in code_of(class_attribute(value, name))
    )


def _is_of_program(value: Any) -> bool:
    """Whether a value is an instance of a class written in Python."""
    return bool(type(value).__flags__ & (1 << 9)) if _IS_CPYTHON else False


def _is_harmless(function: Any) -> bool:
    """Whether a function in C calls neither its arguments nor callables in its object."""
    if type(function) not in IN_C:
        return False
    owner = getattr(function, "__self__", None)
    if owner is None or type(owner) is types.ModuleType:
        return getattr(function, "__module__", None) in _CALLS_NO_ARGUMENT
    if issubclass(type(owner), GENERATORS):
        return True
    for each in type(owner).__mro__:
        if getattr(function, "__name__", None) in vars(each):
            return each.__module__ in _CALLS_NO_ARGUMENT
    return False


def _holds_nothing(function: Any) -> bool:
    """Whether a callable in C can call nothing but its arguments."""
    if issubclass(type(function), type):
        return True
    if type(function) not in IN_C:
        return False
    owner = getattr(function, "__self__", None)
    return owner is None or issubclass(type(owner), _CONTAINERS)


def _node(frame: FrameType) -> Any:
    """The node of the source that *frame* is executing; None if it cannot be found."""
    if Source is None:
        return None
    name, offset = instruction(frame)
    place: Any = frame
    if name == "PRECALL":
        # In 3.11 this may already call a function in C. `executing` knows only the CALL after it.
        offset += 4
        place = types.TracebackType(None, frame, offset, frame.f_lineno)
    try:
        if IS_PYPY_11:
            return _node_by_position(frame, name, offset)
        found: Any = Part.executing(place)
    except Exception:  # the source may be wrong in any way
        return None
    node = found.decorator or found.node
    if node is None and len(found.statements or ()) == 1:  # None where there is no source
        # Before 3.11, `executing` finds no node for these instructions, but their statement.
        (statement,) = found.statements
        if isinstance(statement, _STATEMENTS.get(name[:7], ())):
            node = statement
    return node


def _node_by_position(frame: FrameType, name: str, offset: int) -> Any:
    """The same, by the place in the source that an instruction has."""
    code: Any = frame.f_code
    place = next(itertools.islice(code.co_positions(), offset // 2, None))
    tree: Any = Part.for_frame(frame).tree
    if name.startswith("CALL_METHOD"):  # its place is that of the method's name
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found: List[Any] = [node for node in calls if _place(node.func)[1::2] == place[1::2]]
    else:
        parts = [node for node in ast.walk(tree) if isinstance(node, (ast.expr, ast.stmt))]
        found = [node for node in parts if _place(node) == place and type(node) is not ast.Expr]
    return found[0] if len(found) == 1 else None


def _place(node: Any) -> Tuple[int, int, int, int]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _evaluator(frame: FrameType) -> Any:
    names: Dict[str, Any] = dict(locals_of(frame))
    return Evaluator(ChainMap(names, frame.f_globals, _builtins_of(frame)))


def _builtins_of(frame: FrameType) -> Dict[str, Any]:
    found: Any = frame.f_builtins
    return vars(found) if isinstance(found, types.ModuleType) else found


def _text(node: ast.expr) -> str:
    """The expression of a callable, with its names only."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_text(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{_text(node.func)}(...)"
    return "(...)"
