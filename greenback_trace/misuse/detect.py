"""Which misuse, if any, a bridge that starts is in.

Every bridge of debug mode pays for this, so it takes one pass over the frames, and one look-up for
each: whether the instruction that a frame is at is known to call what the next frame in is running.
Only where that is not so, the detectors are asked.
"""

from __future__ import annotations

import gc
import sys
from types import CodeType, FrameType
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from greenlet import getcurrent

from greenback._frames import OUTERMOST, is_bridge, is_worker

from ..count.sites import STRIDE
from .detectors import (
    async_caller,
    finalizer,
    gc_callback,
    imports,
    signal_handler,
    trace_function,
    weakref_callback,
)
from .evidence.calls import how_called
from .evidence.instructions import is_plainly_called
from .evidence.prompt import inside_prompt
from .evidence.values import takes_arguments
from .finding import Finding, Suspicion

#: The kinds that can be told on this interpreter. The detectors of the others are off.
SUPPORTED: Dict[str, bool] = {
    "finalizer": True,
    "weakref_callback": True,
    "signal_handler": True,
    "gc_callback": hasattr(gc, "callbacks"),
    "trace_function": True,
    "import": True,
    "lock_held": True,
    "async_caller": True,
}

_SUSPECTS: Tuple[Callable[[FrameType, FrameType], Optional[Suspicion]], ...] = tuple(
    module.suspect
    for module in (finalizer, trace_function, signal_handler, gc_callback, weakref_callback)
    if SUPPORTED[module.KIND]
)
_PLACES_KEPT = 20_000
_CODES_KEPT = 10_000


class _Known:
    """What was learned of code, by the ids of code objects.

    It is thrown away as a whole when there is too much of it: were it emptied, another thread could
    note an id after the code of that was forgotten, and other code get that id. Whoever uses one
    has a reference to it. Written by whichever thread comes first: what two write at once is equal.
    """

    __slots__ = ("also_called_from", "called_from", "codes", "sync", "unclear")

    def __init__(self) -> None:
        #: The places of calls, known as in count/sites.py, with the id of the code that they are
        #: known to call.
        self.called_from: Dict[int, int] = {}
        #: All other codes that the same place calls.
        self.also_called_from: Dict[int, Set[int]] = {}
        #: The codes of callers that are not async.
        self.sync: Set[int] = set()
        #: Places whose calls were looked at, and are not known to be made by their own code.
        self.unclear: Set[Tuple[int, int]] = set()
        #: The codes, so that no other one gets an id. They are written first.
        self.codes: Dict[int, CodeType] = {}


_known = _Known()
#: What stands for `_Known.called_from` where frames are to be looked at that are known.
_NOTHING: Dict[int, int] = {}


def at_start(frame: FrameType, first: Optional[FrameType] = None) -> Optional[Finding]:
    """The misuse that a bridge is in, if there is one: the innermost, of whatever kind but locks.

    That the caller is async comes last. What is around another bridge that this one is inside of
    was that one's misuse, and is not reported again. What is around the prompt of a debugger at
    which the bridge was asked for is none.

    Args:
        frame: The frame that called `greenback.await_`, of the greenlet that is running now.
        first: One of its callers, if all calls inside of it are known: see `are_known`.
    """
    stride = STRIDE
    known = _known
    called_from = known.called_from
    closing: List[FrameType] = []
    if sys.exc_info()[1] is not None:
        closing = finalizer.closing_frames()
        if closing:
            called_from = _NOTHING
            first = None
    here: Any = getcurrent()
    inner = first or frame
    site = id(frame.f_code)
    mine = id(inner.f_code)
    while True:
        outer = inner.f_back
        try:
            while outer is not None:
                around = id(outer.f_code)
                if called_from[around + outer.f_lasti * stride] != mine:
                    break
                inner, mine = outer, around
                outer = inner.f_back
        except KeyError:
            pass
        code = inner.f_code
        if is_bridge(inner):
            break
        if outer is not None and id(code) not in OUTERMOST:
            also = known.also_called_from.get(around + outer.f_lasti * stride, ())
            if called_from is _NOTHING or mine not in also:
                found = _look(known, frame, inner, outer, closing)
                if found is not None:
                    asked = inside_prompt(frame)
                    return found if asked is None or found.frame in asked else None
            inner, mine = outer, around
            continue
        # The end of this greenlet.
        if is_worker(here) or here.parent is None:
            break
        here = here.parent
        if here.gr_frame is None:
            break
        inner = here.gr_frame
        mine = id(inner.f_code)
    if site in known.sync:
        return None
    found = async_caller.find(frame)
    if found is None and async_caller.is_sync(frame):
        known.codes[site] = frame.f_code
        known.sync.add(site)
    return found


def are_known(frame: FrameType, count: int) -> bool:
    """Whether *count* calls, from that of *frame* on, are known to be made by their callers."""
    known = _known
    for _ in range(count):
        outer = frame.f_back
        if outer is None:
            return False
        mine = id(frame.f_code)
        place = id(outer.f_code) + outer.f_lasti * STRIDE
        also = known.also_called_from.get(place, ())
        if known.called_from.get(place) != mine and mine not in also:
            return False
        frame = outer
    return True


def _look(
    known: _Known,
    site: FrameType,
    frame: FrameType,
    caller: FrameType,
    closing: List[FrameType],
) -> Optional[Finding]:
    """What the detectors say of a frame."""
    code = frame.f_code
    if code in imports.CODES:
        return imports.find(frame, _module_in(site, frame))
    if code.co_flags & finalizer.RESUMABLE:
        is_closing = any(each is frame for each in closing)
        found = finalizer.of_generator(frame, caller, is_closing)
        if found is None and not is_closing:
            _remember(known, code, caller)
        return found
    place = (id(caller.f_code) + caller.f_lasti * STRIDE, id(code))
    # Taking instructions apart takes 100 times as long as all that is around it.
    if place not in known.unclear and is_plainly_called(frame, caller):
        _remember(known, code, caller)
        return None
    for suspect in _SUSPECTS:
        suspicion = suspect(frame, caller)
        if suspicion is None:
            continue
        explicit, evidence = how_called(
            frame, caller, names=suspicion.names, handed=suspicion.handed
        )
        if explicit is None and suspicion.confirm is not None:
            sure = suspicion.confirm()
            if sure is not None:
                explicit, evidence = False, sure
        if explicit:
            _remember(known, code, caller)
            return None
        return Finding(
            suspicion.kind,
            frame,
            suspicion.subject,
            (*suspicion.evidence, evidence),
            explicit is None,
        )
    if not takes_arguments(code):
        _remember(known, code, caller)
        return None
    # It is nothing now. If its caller calls it by another name, it need not be looked at again.
    if place not in known.unclear:
        if how_called(frame, caller).explicit:
            _remember(known, code, caller)
        elif len(known.unclear) < _PLACES_KEPT:
            known.codes[id(code)], known.codes[id(caller.f_code)] = code, caller.f_code
            known.unclear.add(place)
    return None


def _remember(known: _Known, code: CodeType, caller: FrameType) -> None:
    """Note that *caller* calls *code* with the instruction that it is at."""
    global _known
    if len(known.codes) >= _CODES_KEPT:
        if _known is known:
            _known = _Known()
        return  # the next one is learned
    outer = caller.f_code
    known.codes[id(code)], known.codes[id(outer)] = code, outer
    place = id(outer) + caller.f_lasti * STRIDE
    if known.called_from.setdefault(place, id(code)) != id(code):
        known.also_called_from.setdefault(place, set()).add(id(code))


def _module_in(site: FrameType, frame: FrameType) -> Optional[FrameType]:
    """The outermost frame inside *frame* that runs the code of a module."""
    found = None
    inner: Optional[FrameType] = site
    while inner is not None and inner is not frame:
        if inner.f_code.co_name == "<module>":
            found = inner
        inner = inner.f_back
    return found
