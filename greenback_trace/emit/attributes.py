"""The attributes of spans, which ``docs/traces.rst`` explains."""

from __future__ import annotations

from types import GetSetDescriptorType
from typing import TYPE_CHECKING, Any, Dict

from ..count.names import full_name

if TYPE_CHECKING:
    from ..count.counts import PortalTally, Running


def first_attributes(bridge: Running) -> Dict[str, Any]:
    """The attributes of a bridge's span at its start, where samplers see them."""
    chain = bridge.node.chain()
    site = chain[-1]
    attributes: Dict[str, Any] = {
        "code.function.name": site.function,
        "greenback.async_library": bridge.tally.library_name,
        "greenback.awaitable": _awaitable_name(bridge.awaitable),
        "greenback.sync_depth": 0 if site.is_async else len(chain),
        "greenback.sync_chain": () if site.is_async else tuple(map(str, chain)),
    }
    if site.file:
        attributes["code.file.path"] = site.file
        attributes["code.line.number"] = site.line
    return attributes


def portal_attributes(tally: PortalTally) -> Dict[str, Any]:
    """The attributes that a portal's span gets at its end: the totals of the portal."""
    return {
        "greenback.portal.bridges": tally.bridges,
        "greenback.portal.suspended": tally.suspended,
        "greenback.portal.errors": tally.errors,
        "greenback.portal.switches": tally.switches,
        "greenback.portal.bridge_time": tally.time_ns / 1e9,
        "greenback.portal.suspended_time": tally.suspended_ns / 1e9,
        "greenback.portal.switch_time": tally.switch_ns / 1e9,
        "greenback.portal.step_time_max": tally.step_max_ns / 1e9,
        "greenback.portal.slow_steps": tally.slow_steps,
    }


def _awaitable_name(awaitable: Any) -> str:
    kind = type(awaitable)
    # Coroutines and similar objects have a name in C. Other objects are not asked: an attribute of
    # theirs can run code of the program.
    for base in type.__dict__["__mro__"].__get__(kind):
        name = vars(base).get("__qualname__")
        if type(name) is GetSetDescriptorType:  # it is in C
            return str(name.__get__(awaitable))
    return full_name(kind)
