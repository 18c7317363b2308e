"""The misuse, if any, that a starting bridge is part of.

Every bridge in debug mode pays for this. So it takes one pass over the frames, with one look-up for
each: whether the instruction that a frame is at is known to call the function of the next frame in.
The detectors are asked only about the other frames.
"""

from __future__ import annotations

import gc
import sys
from types import CodeType, FrameType
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from greenlet import getcurrent

from greenback._frames import OUTERMOST, around_worker, is_bridge, is_worker

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

#: Whether each kind can be recognised on this interpreter. If not, its detector is off.
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
    """Facts learned about code, by the ids of code objects.

    When there are too many, a new object replaces this one. If it were emptied instead, another
    thread could note an id after the code object was dropped, and another code object could get
    that id. A function that uses the facts keeps a reference to them. Any thread writes them; what
    two threads write at once is equal.
    """

    __slots__ = ("also_called_from", "called_from", "codes", "sync", "unclear")

    def __init__(self) -> None:
        #: The id of the code that a place is known to call. Places are numbers, made as in
        #: count/sites.py.
        self.called_from: Dict[int, int] = {}
        #: The ids of all other code that the same place is known to call.
        self.also_called_from: Dict[int, Set[int]] = {}
        #: The ids of the code of callers that are not async.
        self.sync: Set[int] = set()
        #: Places, with the id of the code called, whose instruction was looked at and does not show
        #: that it makes the call.
        self.unclear: Set[Tuple[int, int]] = set()
        #: The code objects, kept so that no other one gets their ids. Written before the ids.
        self.codes: Dict[int, CodeType] = {}


_known = _Known()
#: Stands in for `_Known.called_from` where known frames are to be looked at, too.
_NOTHING: Dict[int, int] = {}


def at_start(frame: FrameType, first: Optional[FrameType] = None) -> Optional[Finding]:
    """The innermost misuse that a bridge is part of, of any kind but ``lock_held``; or None.

    ``async_caller`` comes last. The frames around another bridge, inside of which this one is, were
    that bridge's misuse and are not reported again. The frames around the prompt of a debugger, at
    which a user asked for the bridge, are no misuse.

    Args:
        frame: The frame that called `greenback.await_`, of the greenlet that is running now.
        first: A caller of it, if all calls from there inwards are known: see `are_known`.
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
        if outer is None and is_worker(here) and around_worker is not None:
            outer = around_worker  # a worker in C has no frame
            around = id(outer.f_code)
        code = inner.f_code
        if is_bridge(inner):
            break
        if outer is not None and id(code) not in OUTERMOST:
            place = around + outer.f_lasti * stride
            also = known.also_called_from.get(place, ())
            if called_from is _NOTHING or (mine not in also and called_from.get(place) != mine):
                found = _look(known, frame, inner, outer, closing)
                if found is not None:
                    asked = inside_prompt(frame)
                    return found if asked is None or found.frame in asked else None
            inner, mine = outer, around
            continue
        # The outermost frame of this greenlet.
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
    """Whether *count* calls, from that of *frame* outwards, are known to be their callers'."""
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
    """The finding of the detectors about one frame."""
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
    # Taking instructions apart takes 100 times as long as everything around it.
    if (
        caller is not around_worker
        and place not in known.unclear
        and is_plainly_called(frame, caller)
    ):
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
            if caller is not around_worker:  # it stands for many, and would hide the next misuse
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
    # No detector suspects it now, but one may later. If its caller's code calls it, by whatever
    # name, it need not be looked at again.
    if place not in known.unclear:
        if how_called(frame, caller).explicit:
            _remember(known, code, caller)
        elif len(known.unclear) < _PLACES_KEPT:
            known.codes[id(code)], known.codes[id(caller.f_code)] = code, caller.f_code
            known.unclear.add(place)
    return None


def _remember(known: _Known, code: CodeType, caller: FrameType) -> None:
    """Note that *caller* calls *code* by the instruction that it is at."""
    global _known
    if len(known.codes) >= _CODES_KEPT:
        if _known is known:
            _known = _Known()
        return  # the next call is remembered
    outer = caller.f_code
    known.codes[id(code)], known.codes[id(outer)] = code, outer
    place = id(outer) + caller.f_lasti * STRIDE
    if known.called_from.setdefault(place, id(code)) != id(code):
        known.also_called_from.setdefault(place, set()).add(id(code))


def _module_in(site: FrameType, frame: FrameType) -> Optional[FrameType]:
    """The outermost frame inside *frame* that runs the code of a module; None without one."""
    found = None
    inner: Optional[FrameType] = site
    while inner is not None and inner is not frame:
        if inner.f_code.co_name == "<module>":
            found = inner
        inner = inner.f_back
    return found
