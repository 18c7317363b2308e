from __future__ import annotations

import importlib
import sys
from typing import Any, Callable, Iterator

import pytest

KIND = "import"

# A bridge that the imported modules call. They have no other way to the test.
act: Any = None


@pytest.fixture
def module(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, bridge: Callable[[], None]
) -> Iterator[Callable[[str, str], None]]:
    """Writes a module that can be imported, and can call `act`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "act_of_test", bridge, raising=False)
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        path = tmp_path / f"{name}.py"
        path.write_text("import sys\nact = sys.act_of_test\n" + source)
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("misused_"):
            del sys.modules[name]


class TestImport:
    @pytest.mark.parametrize("how", ["statement", "from", "function", "dunder"])
    def test_is_found(self, backend: Any, looking: Any, module: Any, how: str) -> None:
        """A bridge while a module is imported is found, for every way to import it."""
        module("misused_plain", "act()\nvalue = 1\n")
        imports = {
            "statement": "import misused_plain",
            "from": "from misused_plain import value",
            "function": "import importlib; importlib.import_module('misused_plain')",
            "dunder": "__import__('misused_plain')",
        }
        found = looking.only(backend, lambda: exec(imports[how], {}), KIND)
        assert "misused_plain" in found.subject
        assert found.frame.f_globals["__name__"] == "misused_plain"

    def test_lazy(self, backend: Any, looking: Any, module: Any) -> None:
        """An import inside a function is found, many functions above the bridge."""
        module(
            "misused_deep",
            "def deeper(levels):\n    deeper(levels - 1) if levels else act()\ndeeper(50)\n",
        )

        def lazily() -> None:
            import misused_deep  # type: ignore[import-not-found]

            assert misused_deep

        found = looking.only(backend, lazily, KIND)
        assert __file__ in found.subject

    @pytest.mark.skipif(sys.version_info < (3, 15), reason="lazy imports are of 3.15")
    @pytest.mark.parametrize("use", ["misused_put_off", "print(misused_put_off)", "use()"])
    def test_put_off(self, backend: Any, looking: Any, module: Any, use: str) -> None:
        """A bridge in a lazy import, which runs when a variable is read, is found."""
        module("misused_put_off", "act()\n")
        source = f"lazy import misused_put_off\ndef use():\n    return misused_put_off\n{use}\n"
        found = looking.only(backend, lambda: exec(source, {}), KIND)
        assert "misused_put_off" in found.subject
        assert found.frame.f_globals["__name__"] == "misused_put_off"

    def test_innermost(self, backend: Any, looking: Any, module: Any) -> None:
        """Where modules import one another, the innermost is named."""
        module("misused_inner", "act()\n")
        module("misused_outer", "import misused_inner\n")

        def run() -> None:
            import misused_outer  # type: ignore[import-not-found]

            assert misused_outer

        found = looking.only(backend, run, KIND)
        assert "misused_inner" in found.subject
        assert found.frame.f_globals["__name__"] == "misused_inner"

    def test_reload(self, backend: Any, looking: Any, module: Any) -> None:
        """A bridge while a module is reloaded is found."""
        module("misused_again", "if 'loaded' in globals():\n    act()\nloaded = True\n")
        import misused_again  # type: ignore[import-not-found]

        assert (
            "reload" in looking.only(backend, lambda: importlib.reload(misused_again), KIND).subject
        )

    def test_of_package(self, backend: Any, looking: Any, module: Any, tmp_path: Any) -> None:
        """A bridge in the __init__ of a package is found."""
        (tmp_path / "misused_package").mkdir()
        module("misused_package/__init__", "act()\n")
        module("misused_package/part", "")

        def run() -> None:
            import misused_package.part  # type: ignore[import-not-found]

            assert misused_package

        assert "misused_package" in looking.only(backend, run, KIND).subject

    def test_finished(self, backend: Any, looking: Any, module: Any) -> None:
        """An import that is over is no misuse, nor is one that does not bridge."""
        module("misused_over", "def use():\n    act()\n")

        def run() -> None:
            import misused_over  # type: ignore[import-not-found]

            misused_over.use()

        looking.none(backend, run)
        looking.none(backend, run)

    def test_of_other_thread(self, backend: Any, looking: Any, module: Any, bridge: Any) -> None:
        """An import in another thread is no misuse of this thread."""
        import threading

        begun, goes_on = threading.Event(), threading.Event()
        module(
            "misused_elsewhere",
            "sys.begun_of_test.set()\nsys.goes_on_of_test.wait(10)\n",
        )
        sys.begun_of_test, sys.goes_on_of_test = begun, goes_on  # type: ignore[attr-defined]
        thread = threading.Thread(target=importlib.import_module, args=("misused_elsewhere",))
        thread.start()
        try:
            assert begun.wait(10)
            looking.none(backend, bridge)
        finally:
            goes_on.set()
            thread.join()
            del sys.begun_of_test, sys.goes_on_of_test  # type: ignore[attr-defined]
