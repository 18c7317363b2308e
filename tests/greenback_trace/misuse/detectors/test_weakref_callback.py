from __future__ import annotations

import functools
import weakref
from typing import Any, Callable, List

import pytest

from ..garbage import collect

KIND = "weakref_callback"


class Thing:
    pass


def shapes(bridge: Callable[[], None]) -> Any:
    """Callbacks of all shapes."""

    def function(reference: Any) -> None:
        bridge()

    def with_defaults(reference: Any, other: Any = None, *, option: int = 0) -> None:
        bridge()

    def any_arguments(*arguments: Any) -> None:
        bridge()

    def last(first: Any, reference: Any) -> None:
        bridge()

    @functools.wraps(function)
    def decorated(*arguments: Any) -> None:
        function(*arguments)

    class Owner:
        def method(self, reference: Any) -> None:
            bridge()

        @classmethod
        def of_class(cls, reference: Any) -> None:
            bridge()

        @staticmethod
        def static(reference: Any) -> None:
            bridge()

        def __call__(self, reference: Any) -> None:
            bridge()

    return {
        "function": function,
        "lambda": lambda reference: bridge(),
        "defaults": with_defaults,
        "any-arguments": any_arguments,
        "decorated": decorated,
        "method": Owner().method,
        "class-method": Owner.of_class,
        "static-method": Owner.static,
        "object": Owner(),
        "partial": functools.partial(last, 1),
    }


SHAPES = sorted(shapes(lambda: None))


class TestCallback:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_found(self, backend: Any, looking: Any, bridge: Any, shape: str) -> None:
        """A bridge in the callback of a weak reference is found, for every kind of callback."""

        def drop() -> None:
            thing = Thing()
            kept.append(weakref.ref(thing, shapes(bridge)[shape]))
            del thing
            collect()

        kept: List[Any] = []
        assert "weak reference" in looking.only(backend, drop, KIND).subject

    @pytest.mark.parametrize("shape", SHAPES)
    def test_of_proxy(self, backend: Any, looking: Any, bridge: Any, shape: str) -> None:
        """A bridge in the callback of a weak proxy is found."""

        def drop() -> None:
            thing = Thing()
            kept.append(weakref.proxy(thing, shapes(bridge)[shape]))
            del thing
            collect()

        kept: List[Any] = []
        assert "weak proxy" in looking.only(backend, drop, KIND).subject

    @pytest.mark.parametrize("shape", SHAPES)
    def test_by_collector(self, backend: Any, looking: Any, bridge: Any, shape: str) -> None:
        """A bridge in a callback that the cycle collector runs is found."""

        def drop() -> None:
            thing: Any = Thing()
            thing.itself = thing
            kept.append(weakref.ref(thing, shapes(bridge)[shape]))
            del thing
            collect()

        kept: List[Any] = []
        looking.only(backend, drop, KIND)

    def test_of_subclass(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A bridge in the callback of a derived reference, or of a WeakMethod, is found."""

        class Reference(weakref.ref):  # type: ignore[type-arg]
            pass

        class Owner:
            def method(self) -> None:
                pass

        def drop() -> None:
            thing = Thing()
            kept.append(Reference(thing, lambda reference: bridge()))
            del thing
            collect()

        def drop_method() -> None:
            owner = Owner()
            kept.append(weakref.WeakMethod(owner.method, lambda reference: bridge()))
            del owner
            collect()

        kept: List[Any] = []
        looking.only(backend, drop, KIND)
        looking.only(backend, drop_method, KIND)

    @pytest.mark.parametrize("kind", ["key", "value", "set"])
    def test_of_collection(self, backend: Any, looking: Any, bridge: Any, kind: str) -> None:
        """A bridge while a weak dictionary or set removes a dead entry is found."""

        class Data(dict):  # type: ignore[type-arg]
            def __delitem__(self, key: Any) -> None:
                bridge()
                super().__delitem__(key)

        class Key:
            # What removes it from a dictionary of values may be in C. That asks for its hash.
            def __hash__(self) -> int:
                if self in kept:
                    kept.remove(self)
                    bridge()
                return 1

        class Members(set):  # type: ignore[type-arg]
            def discard(self, item: Any) -> None:
                bridge()
                super().discard(item)

        def drop() -> None:
            thing = Thing()
            made: Any
            if kind == "key":
                made = weakref.WeakKeyDictionary()
                made.data = Data()
                made[thing] = 1
            elif kind == "value":
                key = Key()
                made = weakref.WeakValueDictionary()
                made[key] = thing
                kept.append(key)
            else:
                made = weakref.WeakSet()
                made.data = Members()
                made.add(thing)
            kept.append(made)
            del thing
            collect()

        kept: List[Any] = []
        looking.only(backend, drop, KIND)


class TestOrdinaryCode:
    def dead(self) -> Any:
        reference = weakref.ref(Thing(), lambda reference: None)
        collect()
        assert reference() is None
        return reference

    @pytest.mark.parametrize("shape", SHAPES)
    def test_dead_reference_passed(
        self, backend: Any, looking: Any, bridge: Any, shape: str
    ) -> None:
        """A dead reference that ordinary code hands on is no misuse."""
        reference = self.dead()
        function = shapes(bridge)[shape]

        def from_list() -> None:
            actions = [function]
            actions[0](reference)

        looking.none(backend, lambda: function(reference))
        looking.none(backend, from_list)

    def test_callback_called(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A call of a function that is the callback of a living object is no misuse."""

        def callback(reference: Any) -> None:
            bridge()

        thing = Thing()
        kept = weakref.ref(thing, callback)
        reference = self.dead()
        looking.none(backend, lambda: callback(reference))
        looking.none(backend, functools.partial(callback, kept))
        del kept  # before what it refers to

    def test_live_reference(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A reference or proxy to a living object is no evidence, even in an opaque call."""
        thing = Thing()

        def get() -> Any:
            return lambda reference: bridge()

        looking.none(backend, lambda: get()(weakref.ref(thing)))
        looking.none(backend, lambda: get()(weakref.proxy(thing)))

    def test_dead_proxy_passed(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A dead proxy that ordinary code hands on is no misuse, and is not asked for anything."""

        def function(proxy: Any) -> int:
            bridge()
            return 1

        def through_c() -> None:
            proxies, key = [proxy], function
            max(proxies, key=key)

        proxy = weakref.proxy(Thing(), lambda proxy: None)
        collect()
        looking.none(backend, lambda: function(proxy))
        looking.none(backend, through_c)

    def test_opaque_is_inconclusive(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A call of the result of a call is inconclusive: it may be an implicit one."""

        def get() -> Any:
            return lambda reference: bridge()

        reference = self.dead()
        found = looking.in_portal(backend, lambda: get()(reference))
        assert [(each.kind, each.inconclusive) for each in found] == [(KIND, True)]
