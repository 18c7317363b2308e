"""Whether a function was called by the code of its caller, or by the interpreter.

Finalizers, callbacks of weak references and signal handlers have the frame that happened to run as
their ``f_back``. What tells them from functions which that frame has called is the instruction that
it is at: one that calls nothing says it all; for one that calls, it is the expression of the call,
found in the source by `executing`, a part of it at a time, and evaluated, without running anything,
by `pure_eval`.
"""

from __future__ import annotations

import ast
import dis
import functools
import itertools
import sys
import types
from collections import ChainMap, deque
from types import CodeType, FrameType
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ...count.frames import locals_of
from .source import Part

try:
    from executing import Source
    from pure_eval import CannotEval, Evaluator
except ImportError:  # without greenback[debug]
    Source = None  # type: ignore[assignment,misc]

_IS_CPYTHON = sys.implementation.name == "cpython"
#: Its bytecode is not that of CPython 3.11, which both `dis` and `executing` take it for.
_IS_PYPY_11 = sys.implementation.name == "pypy" and sys.version_info >= (3, 11)
#: Entries of the inline cache, which `f_lasti` can point at (CPython 3.11 and later).
_CACHE = dis.opmap.get("CACHE", -1)
#: How the names of instructions begin that may run code of the program, other than calls.
_RUNS_CODE = (
    "BEFORE_",
    "BINARY_",
    "BUILD_CONST_KEY_MAP",
    "BUILD_LIST_FROM_ARG",
    "BUILD_LIST_UNPACK",
    "BUILD_MAP",
    "BUILD_SET",
    "BUILD_TUPLE_UNPACK",
    "CALL_INTRINSIC",
    "CHECK_",
    "CLEANUP_THROW",
    "COMPARE_",
    "CONTAINS_",
    "CONVERT_",
    "COPY_DICT",
    "DELETE_ATTR",
    "DELETE_NAME",
    "DELETE_SUBSCR",
    "DICT_",
    "END_ASYNC",
    "FORMAT_",
    "FOR_ITER",
    "GET_",
    "IMPORT_",
    "INPLACE_",
    "JUMP_IF",
    "LIST_EXTEND",
    "LOAD_ATTR",
    "LOAD_BUILD",
    "LOAD_CLASSDEREF",
    "LOAD_FROM_DICT",
    "LOAD_METHOD",
    "LOAD_NAME",
    "LOAD_SPECIAL",
    "LOAD_SUPER",
    "LOOKUP_METHOD",
    "MAP_ADD",
    "MATCH_",
    "POP_JUMP",
    "PREP_",
    "PRINT_",
    "RAISE_",
    "SEND",
    "SETUP_ANNOTATIONS",
    "SETUP_ASYNC_WITH",
    "SETUP_WITH",
    "SET_ADD",
    "SET_UPDATE",
    "STORE_ATTR",
    "STORE_NAME",
    "STORE_SLICE",
    "STORE_SUBSCR",
    "TO_BOOL",
    "UNARY_",
    "UNPACK_",
    "WITH_",
    "YIELD_",
)
if sys.version_info >= (3, 15):
    _RUNS_CODE = (*_RUNS_CODE, "LOAD_GLOBAL")  # which may be an import that is lazy (PEP 810)
#: Of these, those that take items from an iterator, which may be one that calls a function.
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
#: The operators of BINARY_OP that change their left side.
_IN_PLACE = range(13, 26)
_WITH = ("__enter__", "__exit__", "__aenter__", "__aexit__")
_WITH_INSTRUCTIONS = ("BEFORE_", "LOAD_SPECIAL", "SETUP_", "WITH_")
#: What is no call, by its name: a jump (3.8), and operators.
_NO_CALLS = ("CALL_FINALLY", "CALL_INTRINSIC_1", "CALL_INTRINSIC_2")
#: Modules in C none of whose functions and methods calls what it is given or already has.
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
GENERATORS = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
#: Iterators that do nothing but hand out what is in a container.
#: Functions and methods in C. On PyPy they are of the type of those in Python, or of methods.
IN_C: Tuple[type, ...] = (
    type(len),
    type([].append),
    type([].__len__),
    type(str.join),
    type("".join),
)
_STATEMENTS: Dict[str, Any] = {"FOR_ITE": ast.For, "INPLACE": ast.AugAssign}
_EMPTY: Tuple[Any, ...] = ((), [], "", b"", {}, set(), range(0), {}.values(), {}.items())
_ITERATORS = tuple(type(iter(each)) for each in _EMPTY)


_HAND_OUT = _CONTAINERS + GENERATORS + _ITERATORS
#: Iterators whose items come from those that they are given.
_COMBINES = (enumerate, reversed, zip, range, list, tuple, sorted, set, iter)


class Origin(NamedTuple):
    """How a function came to be called."""

    #: Whether its caller's code called it; None if that cannot be told.
    explicit: Optional[bool]
    #: The sentence that says why.
    evidence: str


#: Up to CPython 3.10, a frame that is suspended in a `yield from` or `await` is not at this
#: instruction, but at the one before it.
_YIELD_FROM: Optional[bytes] = None
if sys.implementation.name == "cpython" and sys.version_info < (3, 11):
    _YIELD_FROM = bytes([dis.opmap["YIELD_FROM"]])


def instruction(frame: FrameType) -> Tuple[str, int]:
    """The name and the offset of the instruction that *frame* is at."""
    offset = frame.f_lasti
    if offset < 0:
        return "", offset
    instructions = frame.f_code.co_code
    while instructions[offset] == _CACHE and offset:
        offset -= 2
    while instructions[offset] == dis.EXTENDED_ARG:  # where the frame is, before 3.11
        offset += 2
    if instructions[offset + 2 : offset + 3] == _YIELD_FROM:
        # The frame stays there while an exception is thrown through it, into the inner frame.
        offset += 2
    return dis.opname[instructions[offset]], offset


def instructions_of(code: CodeType) -> Iterator[dis.Instruction]:
    """Those of `dis`, with the names that they are about."""
    for each in dis.get_instructions(code):
        if _IS_PYPY_11 and each.opcode in dis.hasfree and each.arg is not None:
            # Such a variable's number is one among its like there, and not among all variables.
            name = (*code.co_cellvars, *code.co_freevars)[each.arg]
            yield each._replace(argval=name, argrepr=name)
        else:
            yield each


def is_call(name: str) -> bool:
    return name.startswith(("CALL", "PRECALL")) and name not in _NO_CALLS


def is_inert(name: str) -> bool:
    """Whether the instruction calls nothing of the program's, except by what it drops."""
    return not is_call(name) and not name.startswith(_RUNS_CODE)


def is_plainly_called(frame: FrameType, caller: FrameType) -> bool:
    """Whether the caller's instruction calls something of this frame's name.

    Nothing is looked at but bytecode, so that this can be asked of every frame.
    """
    name, offset = instruction(caller)
    mine = frame.f_code.co_name
    is_special = (
        mine.startswith("__") and mine.endswith("__") and mine not in ("__del__", "__call__")
    )
    if not is_call(name):
        if is_inert(name):
            return False
        return is_special or _argument_at(caller.f_code, offset) == mine
    # Of `__init__` and its like, the class is what is called.
    return is_special or _name_in(_loaded_before(caller.f_code, offset)) == mine


def _argument_at(code: CodeType, offset: int) -> Any:
    for each in instructions_of(code):
        if each.offset == offset:
            return each.argval
    return None


def _loaded_before(code: CodeType, offset: int) -> Optional[dis.Instruction]:
    """The last instruction before the arguments of the call at *offset*: what loads the function.

    None where branches in the arguments hide it.
    """
    before: List[dis.Instruction] = []
    for each in instructions_of(code):
        if each.offset == offset:
            break
        if each.opname not in ("CACHE", "EXTENDED_ARG", "KW_NAMES"):
            before.append(each)
    else:
        return None
    if before and before[-1].opname == "PRECALL":
        before.pop()  # the first half of this call (3.11)
    items = each.arg or 0
    if each.opname.endswith("_KW"):
        items += 1
    elif each.opname.endswith("_EX"):
        # From 3.14 on, there always are keyword arguments: a dictionary, or NULL.
        items = 2 if each.arg is None else 1 + (items & 1)
    while items > 0 and before:
        last = before.pop()
        try:
            items -= dis.stack_effect(last.opcode, last.arg, jump=False)
        except ValueError:
            return None
    if before and before[-1].opname == "PUSH_NULL":
        before.pop()  # which follows the function from 3.13 on
    return None if items or not before else before[-1]


def _name_in(loads: Optional[dis.Instruction]) -> Any:
    if loads is None:
        return None
    value = loads.argval
    return value[-1] if isinstance(value, tuple) and value else value


def takes_arguments(code: CodeType) -> bool:
    """Whether it has positional parameters."""
    return bool(code.co_argcount or code.co_flags & 0x04)  # CO_VARARGS


def arguments_of(frame: FrameType) -> List[Any]:
    """The values of the positional parameters of a frame, as far as they are still bound."""
    code = frame.f_code
    values = locals_of(frame)
    found = [values[name] for name in code.co_varnames[: code.co_argcount] if name in values]
    if code.co_flags & 0x04:  # CO_VARARGS
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        if type(rest) is tuple:
            found += rest
    return found


def code_of(value: Any, depth: int = 5) -> Iterator[CodeType]:
    """The code of all Python functions that a call of *value* would certainly lead to.

    Of functions, methods, partials, callable objects, descriptors, and what decorators that keep
    to `functools.wraps` have wrapped.
    """
    while depth:
        depth -= 1
        code = getattr_static(value, "__code__")
        if type(code) is CodeType:
            yield code
        if not _IS_CPYTHON and type(value) is functools.partial:
            yield PARTIAL_CALL
        for kind, inside in _WRAPPERS:
            if issubclass(type(value), kind):  # isinstance() may ask the value
                value = inside(value)
                break
        else:
            wrapped = getattr_static(value, "__wrapped__")
            if wrapped is None:
                wrapped = class_attribute(type(value), "__call__")
                if type(wrapped) is not types.FunctionType or wrapped is value:
                    return
            value = wrapped


# On PyPy, partials are written in Python.
PARTIAL_CALL: Any = getattr(functools.partial.__call__, "__code__", None)
_WRAPPERS: Tuple[Tuple[Any, Callable[[Any], Any]], ...] = (
    (types.MethodType, lambda value: value.__func__),
    (functools.partial, lambda value: value.func),
    (functools.partialmethod, lambda value: value.func),
    ((staticmethod, classmethod), lambda value: value.__func__),
    (property, lambda value: value.fget),
)


def getattr_static(value: Any, name: str) -> Any:
    """An attribute of functions or one in an instance's dictionary, without running any code."""
    # Not isinstance() here and below, which asks objects for their class: a dead proxy raises.
    if type(value) is types.FunctionType:
        return value.__code__ if name == "__code__" else value.__dict__.get(name)
    try:
        found = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return None
    return found.get(name) if type(found) is dict else None


def class_attribute(kind: type, name: str) -> Any:
    for each in type.__dict__["__mro__"].__get__(kind):
        if name in vars(each):
            return vars(each)[name]
    return None


def leads_to(code: CodeType) -> Callable[[Any], bool]:
    """Tells of a value whether calling it runs *code*."""
    return lambda value: any(each is code for each in code_of(value))


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
        caller: Its ``f_back``.
        is_it: Whether a value is what an explicit call would have called.
        names: Attributes through which it is called, whatever it is that has them.
        handed: What an explicit call would have passed as the last of several arguments.
    """
    if is_it is None:
        is_it = leads_to(frame.f_code)
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
    """Whether operators or attributes of its first argument lead to the frame's code.

    Args:
        frame: A frame.
        which: The special methods to look at; all that operators call if there are none here.
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


def attributes_with(kind: type, code: CodeType) -> Iterator[Tuple[str, Any]]:
    """The attributes of a class and its bases that lead to *code*."""
    for each in type.__dict__["__mro__"].__get__(kind):
        for name, value in vars(each).copy().items():
            if any(found is code for found in code_of(value)):
                yield name, value


def _by_iteration(caller: FrameType, where: str, name: str) -> Origin:
    unknown = Origin(None, f"{where} was at {name}, and what it iterates over could call it")
    iterated = _iterated(_node(caller))
    if iterated is not None and _only_iterates(iterated, _evaluator(caller)):
        return Origin(False, f"{where} was at {name}, and what it iterates over calls nothing")
    return unknown


def _iterated(node: Any) -> Optional[ast.expr]:
    """The expression whose value a part of the source takes items from, if it is clear."""
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
        return True  # what it is given it does not iterate over
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
    loads = _loaded_before(caller.f_code, offset)
    if loads is not None and loads.opname == "LOAD_SPECIAL":  # from 3.14 on
        return Origin(_is_operator(frame, _WITH), f"{where} was entering a with block")
    if Source is None:
        return Origin(
            None, f"{where} was calling something; greenback[debug] is needed to see what"
        )
    node = _node(caller)
    if not isinstance(node, ast.Call):
        if isinstance(node, (ast.With, ast.AsyncWith)) or (
            # Which is how a block ends before 3.11.
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
    if is_it(function):
        return Origin(True, f"{where} was calling {text}, which is it")
    if any(True for _ in code_of(function)) or _is_python_class(function):
        return Origin(False, f"{where} was calling {text}, which is something else")
    # Something in C, which may call what it is given, or what it has been given before.
    if _is_harmless(function):
        return Origin(False, f"{where} was calling {text}, which calls none of its arguments")
    passed: List[ast.expr] = [
        each.value if isinstance(each, ast.Starred) else each for each in node.args
    ]
    passed += [each.value for each in node.keywords]
    leads = not _holds_nothing(function)
    for each in passed:
        try:
            value = evaluator[each]
        except CannotEval:
            leads = True
            continue
        if is_it(value) or (type(value) in (list, tuple) and any(is_it(item) for item in value)):
            return Origin(True, f"{where} was calling {text} and passed it")
        if not issubclass(type(value), (*_HAND_OUT, type)):
            leads = leads or (not any(True for _ in code_of(value)) and not _is_of_program(value))
    if leads:
        return Origin(None, f"{where} was calling {text}, which may call what it was given")
    return Origin(False, f"{where} was calling {text}, which was not given it")


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
    """Whether calling it runs a constructor in Python, which would be the caller."""
    return issubclass(type(value), type) and any(
        True for name in ("__init__", "__new__") for _ in code_of(class_attribute(value, name))
    )


def _is_of_program(value: Any) -> bool:
    """Whether it is an instance of a class written in Python."""
    return bool(type(value).__flags__ & (1 << 9)) if _IS_CPYTHON else False


def _is_harmless(function: Any) -> bool:
    """Whether a function in C calls neither its arguments nor anything in its object."""
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
    """Whether something in C can call nothing but what it is given."""
    if issubclass(type(function), type):
        return True
    if type(function) not in IN_C:
        return False
    owner = getattr(function, "__self__", None)
    return owner is None or issubclass(type(owner), _CONTAINERS)


def _node(frame: FrameType) -> Any:
    """The part of the source that *frame* is in the middle of, if that can be told."""
    if Source is None:
        return None
    name, offset = instruction(frame)
    place: Any = frame
    if name == "PRECALL":
        # What is in C can be called by that already; the source has only the CALL (3.11).
        offset += 4
        place = types.TracebackType(None, frame, offset, frame.f_lineno)
    try:
        if _IS_PYPY_11:
            return _node_by_position(frame, name, offset)
        found: Any = Part.executing(place)
    except Exception:  # whatever is wrong with the source
        return None
    node = found.decorator or found.node
    if node is None and len(found.statements or ()) == 1:  # None where there is no source
        # Before 3.11, nothing is known of these instructions, but the statement is.
        (statement,) = found.statements
        if isinstance(statement, _STATEMENTS.get(name[:7], ())):
            node = statement
    return node


def _node_by_position(frame: FrameType, name: str, offset: int) -> Any:
    """The same, by what an instruction says of its place in the source."""
    code: Any = frame.f_code
    place = next(itertools.islice(code.co_positions(), offset // 2, None))
    tree: Any = Part.for_frame(frame).tree
    if name.startswith("CALL_METHOD"):  # whose place is that of the method's name
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
    """What is called, as far as it is names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_text(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{_text(node.func)}(...)"
    return "(...)"
