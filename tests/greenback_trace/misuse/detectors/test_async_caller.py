from __future__ import annotations

from typing import Any, List

import pytest

import greenback

from ..garbage import collect

KIND = "async_caller"


class TestAsyncCaller:
    @pytest.mark.parametrize("how", ["plain", "comprehension", "generator", "adapter"])
    def test_is_found(self, backend: Any, looking: Any, how: str) -> None:
        """A bridge that an async function makes itself is found."""

        async def plain() -> None:
            greenback.await_(backend.sleep(0))

        async def comprehension() -> None:
            [greenback.await_(backend.sleep(0)) for _ in range(1)]

        async def generating() -> Any:
            greenback.await_(backend.sleep(0))
            yield

        async def generator() -> None:
            async for _ in generating():
                pass

        @greenback.autoawait
        async def sleep() -> None:
            await backend.sleep(0)

        async def adapter() -> None:
            sleep()

        functions = {
            "plain": plain,
            "comprehension": comprehension,
            "generator": generator,
            "adapter": adapter,
        }

        async def main() -> None:
            await greenback.with_portal_run(functions[how])

        greenback.instruments.add_instrument(looking)
        try:
            backend.run(main)
        finally:
            greenback.instruments.remove_instrument(looking)
        assert [(each.kind, each.inconclusive) for each in looking.findings] == [(KIND, False)]

    def test_sync_function_between(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A sync function that an async one calls may bridge."""

        async def main() -> None:
            bridge()

        looking.none(backend, lambda: greenback.await_(main()))

    def test_worse_misuse_is_named(self, backend: Any, looking: Any) -> None:
        """Where an async function is inside a worse misuse, the worse one is named."""
        made: List[Any] = []

        class Thing:
            def __del__(self) -> None:
                if not greenback.has_portal():
                    return
                coroutine = main()
                with pytest.raises(StopIteration):
                    coroutine.send(None)

        async def nothing() -> None:
            pass

        async def main() -> None:
            greenback.await_(nothing())

        def run() -> None:
            made.append(Thing())
            made.pop()
            collect()

        assert looking.only(backend, run, "finalizer").frame.f_code is Thing.__del__.__code__
