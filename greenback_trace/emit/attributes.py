"""The attributes of spans: what ``docs/traces.rst`` explains."""

from __future__ import annotations

from types import GetSetDescriptorType
from typing import TYPE_CHECKING, Any, Dict

from ..count.names import full_name

if TYPE_CHECKING:
    from ..count.counts import PortalTally, Running


def first_attributes(bridge: Running) -> Dict[str, Any]:
    """What the span of a bridge has from its beginning on, for samplers to see."""
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
    """The totals that the span of a portal gets at its end."""
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
    # Coroutines and their like have a name. Other objects are not asked: they may do anything.
    for base in type.__dict__["__mro__"].__get__(kind):
        name = vars(base).get("__qualname__")
        if type(name) is GetSetDescriptorType:  # in C, which runs nothing of the program's
            return str(name.__get__(awaitable))
    return full_name(kind)
