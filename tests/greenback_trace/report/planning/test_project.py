"""Which files a plan looks at for callers, with and without ``--root``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")

from click.testing import CliRunner

from greenback_trace.cli import main
from greenback_trace.report.planning import project

IS_PYPY = sys.implementation.name == "pypy"

RunMain = Callable[..., Path]

ORDERS = """
import asyncio
from greenback import await_

def place(x): return await_(asyncio.sleep(0, x))
"""
MAIN = """
import asyncio
import os
import sys

import greenback

sys.path[:0] = [os.path.join(sys.path[0], each) for each in ("src", "project/src")]
import orders

async def main():
    await greenback.ensure_portal()
    orders.place(1)

asyncio.run(main())
"""
REPAIR = """
from orders import place

def repair(): return place(3)
"""


def plan(*arguments: Any) -> str:
    result = CliRunner().invoke(main, ["plan", *map(str, arguments)], env={"COLUMNS": "500"})
    assert result.exit_code == 0, result.output
    return result.output


def planned(*arguments: Any) -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads(plan(*arguments, "--json"))
    return found


def said(*arguments: Any, of: str = "breaks") -> List[Tuple[str, str]]:
    """What the plan says of which file."""
    steps = planned(*arguments)["steps"]
    return [(os.path.basename(each["file"]), each["what"]) for step in steps for each in step[of]]


BROKEN = ("repair.py", "repair calls place and stays sync")


class TestFiles:
    def test_beside(self, run_main: RunMain) -> None:
        """Files beside the one that the trace names are looked at: its async caller is in one."""
        trace = run_main({"main.py": MAIN, "orders.py": ORDERS, "repair.py": REPAIR})
        assert ("main.py", "await place(...)") in said(trace, of="edits")
        assert said(trace) == [BROKEN]

    def test_package(self, run_main: RunMain) -> None:
        """So are those around a package."""
        trace = run_main(
            {
                "main.py": MAIN.replace("import orders", "from shop import orders"),
                "shop/__init__.py": "",
                "shop/orders.py": ORDERS,
                "tests/repair.py": REPAIR.replace("from orders", "from shop.orders"),
            }
        )
        assert ("main.py", "await place(...)") in said(trace, of="edits")
        assert said(trace) == [BROKEN]

    @pytest.mark.parametrize("mark", ["pyproject.toml", "setup.py", "setup.cfg", ".git/HEAD"])
    def test_project(self, run_main: RunMain, mark: str) -> None:
        """All of the project that a file of the trace belongs to is looked at, and no more."""
        trace = run_main(
            {
                "main.py": MAIN,
                f"project/{mark}": "",
                "project/src/orders.py": ORDERS,
                "project/tests/unit/repair.py": REPAIR,
            }
        )
        assert said(trace) == [BROKEN]
        assert {file for file, _ in said(trace, of="edits")} == {"orders.py"}

    def test_repository(self, run_main: RunMain) -> None:
        """A repository of many projects is looked at as a whole."""
        trace = run_main(
            {
                "main.py": MAIN,
                ".git/HEAD": "",
                "project/pyproject.toml": "",
                "project/src/orders.py": ORDERS,
                "another/pyproject.toml": "",
                "another/repair.py": REPAIR,
            }
        )
        assert said(trace) == [BROKEN]

    @pytest.mark.parametrize(
        "directory",
        [
            "venv/lib/site-packages",
            "environment/lib",
            ".tox",
            "node_modules/x",
            "build/lib",
            "lib/python3.9",
        ],
    )
    def test_left_out(self, run_main: RunMain, directory: str) -> None:
        """What is installed, hidden or built is not the user's, and has no callers."""
        trace = run_main(
            {
                "main.py": MAIN,
                "pyproject.toml": "",
                "environment/pyvenv.cfg": "",
                "orders.py": ORDERS,
                f"{directory}/repair.py": REPAIR,
            }
        )
        assert said(trace) == []
        assert planned(trace)["sources"]["files"] == 2

    def test_wide(self, run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a home directory, and of one like it, only the files beside are looked at."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        files = {".git/HEAD": "", "main.py": MAIN, "orders.py": ORDERS, "letters/repair.py": REPAIR}
        trace = run_main(files)
        assert said(trace) == []
        assert ("main.py", "await place(...)") in said(trace, of="edits")

    def test_root(self, run_main: RunMain, tmp_path: Path) -> None:
        """With --root, it is what is below that."""
        trace = run_main(
            {
                "main.py": MAIN,
                ".git/HEAD": "",
                "src/orders.py": ORDERS,
                "src/repair.py": REPAIR,
                "another/repairs.py": REPAIR,
            }
        )
        assert said(trace, "--root", tmp_path / "src") == [BROKEN]
        assert {file for file, _ in said(trace, "--root", tmp_path / "src", of="edits")} == {
            "orders.py"
        }

    def test_base_classes(self, run_main: RunMain) -> None:
        """Classes are related through a file, too, that has nothing else to do with a method."""
        trace = run_main(
            {
                "main.py": MAIN.replace("orders.place(1)", "orders.Orders().place(1)"),
                "orders.py": """
                import asyncio
                import greenback

                class Orders:
                    def place(self, x): return greenback.await_(asyncio.sleep(0, x))
                """,
                "between.py": """
                from orders import Orders

                class Some(
                    Orders,
                ): pass
                """,
                "repair.py": """
                from between import Some

                class Repairs(Some):
                    def place(self, x): return x

                class Other:
                    def place(self, x): return x
                """,
            }
        )
        what = "async def place, since Repairs.place is called like it"
        assert [each for each in said(trace, of="edits") if each[0] == "repair.py"] == [
            ("repair.py", what)
        ]


class TestModules:
    @pytest.mark.parametrize(
        "code",
        [
            "from orders import place\nplace(1)",
            "import orders\norders.place(1)",
            "import another.orders\nanother.orders.place(1)",
            "from another import orders as o\no.place(1)",
            "from .orders import place as p\np(1)",
            "from . import orders\norders.place(1)",
        ],
    )
    def test_of_that_name(self, run_main: RunMain, code: str) -> None:
        """What is imported from another module of that name is not called by it."""
        trace = run_main(
            {
                "main.py": MAIN,
                "orders.py": ORDERS,
                "another/orders.py": "def place(x): return x",
                "another/use.py": code,
            }
        )
        assert said(trace) == []

    @pytest.mark.parametrize(
        ("code", "certain"),
        [
            ("from shop.orders import place\nplace(1)", True),
            ("import shop.orders\nshop.orders.place(1)", True),
            ("import shop.orders as o\no.place(1)", True),
            ("from shop import orders\norders.place(1)", True),
            ("from .orders import place as p\np(1)", True),
            ("from . import orders as o\no.place(1)", True),
            ("from ..shop.orders import place as p\np(1)", True),
            ("from shop import place\nplace(1)", False),
            ("import shop\nshop.place(1)", False),
            ("def use(orders): orders.place(1)", False),
        ],
    )
    def test_of_that_module(self, run_main: RunMain, code: str, certain: bool) -> None:
        """However a module is imported, a call of its function is found; some are a guess."""
        trace = run_main(
            {
                "main.py": MAIN.replace("import orders", "from shop import orders"),
                "shop/__init__.py": "from .orders import place",
                "shop/orders.py": ORDERS,
                "shop/use.py": code,
                "another/orders.py": "def place(x): return x",
            }
        )
        (step,) = planned(trace)["steps"]
        found = [each for each in step["breaks"] if each["file"].endswith("use.py")]
        assert [each["certain"] for each in found] == [certain]

    @pytest.mark.parametrize(
        ("other", "related"),
        [
            ("class Orders:\n    def place(self, x): return x", False),
            ("from foreign import Orders\nclass Own(Orders):\n    def place(self, x): pass", False),
            ("from orders import Orders\nclass Own(Orders):\n    def place(self, x): pass", True),
            ("import orders as o\nclass Own(o.Orders):\n    def place(self, x): pass", True),
            ("import orders\nclass Orders(orders.Orders):\n    def place(self, x): pass", True),
            ("from orders import *\nclass Own(Orders):\n    def place(self, x): pass", True),
            (
                "class Orders: pass\nclass Own(Orders):\n    def place(self, x): return x\n"
                "def repair(): Orders().place(1), Own().place(2)",
                False,
            ),
        ],
    )
    def test_classes(self, run_main: RunMain, other: str, related: bool) -> None:
        """A class of the same name in another module is another one."""
        trace = run_main(
            {
                "main.py": MAIN.replace("orders.place(1)", "orders.Orders().place(1)"),
                "orders.py": ORDERS.replace("def place(x)", "class Orders:\n  def place(self, x)"),
                "other.py": other,
            }
        )
        (step,) = planned(trace)["steps"]
        files = [os.path.basename(each["file"]) for each in step["edits"] + step["breaks"]]
        assert files.count("other.py") == related

    def test_in_a_package(self, run_main: RunMain) -> None:
        """A module beside one in a package is not what that imports by the bare name."""
        trace = run_main(
            {
                "main.py": MAIN,
                "orders.py": ORDERS,
                "shop/__init__.py": "",
                "shop/orders.py": "def place(x): return x",
                "shop/repair.py": REPAIR,
            }
        )
        assert said(trace) == [BROKEN]


class TestSaid:
    def test_said(self, run_main: RunMain, tmp_path: Path) -> None:
        """The plan says which files it has looked at."""
        trace = run_main({"main.py": MAIN, "orders.py": ORDERS, "repair.py": REPAIR})
        where = os.path.realpath(tmp_path)
        assert f"Callers were looked for in 3 files of {where}.\n" in plan(trace)
        sources = {
            "directories": [where],
            "files": 3,
            "complete": True,
            "missing": [],
            "unreadable": {},
        }
        assert planned(trace)["sources"] == sources

    def test_too_many(self, run_main: RunMain, monkeypatch: pytest.MonkeyPatch) -> None:
        """It looks at so many, the nearest ones, and says what to do where there are more."""
        monkeypatch.setattr(project, "_MOST_FILES", 3)
        trace = run_main(
            {
                ".git/HEAD": "",
                "main.py": MAIN,
                "src/orders.py": ORDERS,
                "src/repair.py": REPAIR,
                **{f"a/{number}.py": "" for number in range(5)},
            }
        )
        assert said(trace) == [BROKEN]
        assert "for in 3 files" in plan(trace)
        assert "and there are more: name your code with --root" in plan(trace)
        assert not planned(trace)["sources"]["complete"]
        assert planned(trace, "--root", trace.parent)["sources"]["complete"]


ODD = {
    "a codec that is none of texts": ("# -*- coding: rot13 -*-\nzvq()\n", ""),
    "many elif": ("if a: pass\n" + "elif place(): pass\n" * 3000, "nested too deeply"),
    "many operands": ("x = " + " + ".join(["place()"] * 20000) + "\n", ""),
    "many calls": ("def g():\n  place" + "()" * 3000 + "\n", ""),
    "no Python": ("def place(:\n", "SyntaxError"),
    "a large one": ("place()\n" + "#" * (5 << 20), "larger than 4 MiB"),
}


class TestUnreadable:
    @pytest.mark.parametrize(("text", "why"), ODD.values(), ids=ODD)
    def test_named(self, run_main: RunMain, tmp_path: Path, text: str, why: str) -> None:
        """A source that cannot be parsed is named, and the rest is looked at."""
        trace = run_main({"main.py": MAIN, "orders.py": ORDERS, "repair.py": REPAIR})
        odd = tmp_path / "odd.py"
        odd.write_text(text)
        unreadable = planned(trace)["sources"]["unreadable"]
        # What is too deep for one parser need not be for another, nor for PyPy's the next time.
        is_up_to_parser = not why or (IS_PYPY and why == "nested too deeply")
        if unreadable or not is_up_to_parser:
            assert list(unreadable) == [os.path.realpath(odd)]
            assert why in unreadable[os.path.realpath(odd)]
        named = f"Not readable: {os.path.realpath(odd)} (" in plan(trace)
        assert named == bool(unreadable) or (IS_PYPY and is_up_to_parser)
        assert said(trace) == [BROKEN]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_special(self, run_main: RunMain, tmp_path: Path, kind: str) -> None:
        """A trace can name a pipe or a device, which is not even opened."""
        trace = run_main({"main.py": MAIN, "orders.py": ORDERS, "repair.py": REPAIR})
        special = tmp_path / "special.py"
        if kind == "pipe":
            os.mkfifo(special)
        else:
            special.symlink_to("/dev/zero")
        content = trace.read_text().replace(str(tmp_path / "orders.py"), str(special))
        trace.write_text(content)
        unreadable = planned(trace)["sources"]["unreadable"]
        assert unreadable == {os.path.realpath(special): "not a regular file"}


class TestOutside:
    @pytest.fixture
    def trace(self, run_main: RunMain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        trace = run_main({"main.py": MAIN, "orders.py": ORDERS, "repair.py": REPAIR})
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "setup.py").touch()
        monkeypatch.chdir(elsewhere)
        return trace

    def test_named(self, trace: Path) -> None:
        """A trace cannot have files read that are elsewhere than in the current project."""
        sources = planned(trace)["sources"]
        assert sources["files"] == 0
        assert os.path.realpath(trace.parent / "orders.py") in sources["unreadable"]
        assert "name its directory as a root" in plan(trace)

    def test_root(self, trace: Path) -> None:
        """They are read if the user names them."""
        sources = planned(trace, "--root", trace.parent)["sources"]
        assert sources["unreadable"] == {}
        assert sources["files"] > 3

    def test_page(self, trace: Path) -> None:
        """An exported page has the same plan, with the same option."""

        def page(*options: Any) -> str:
            arguments = ["export", "--format", "html", *map(str, options), str(trace)]
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 0, result.output
            return result.output

        assert "name its directory" in page()
        assert "name its directory" not in page("--root", trace.parent)

    def test_inside(self, trace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Somewhere in the project is enough."""
        (tmp_path / "pyproject.toml").touch()
        (tmp_path / "elsewhere" / "setup.py").unlink()
        assert planned(trace)["sources"]["unreadable"] == {}


class TestMissing:
    @pytest.fixture
    def moved(self, run_main: RunMain, tmp_path: Path) -> Tuple[Path, Path]:
        """A trace of a program that is gone, and where its sources are now."""
        old, new = tmp_path / "old", tmp_path / "new"
        shop = {
            "shop/__init__.py": "",
            "shop/orders.py": ORDERS,
            "shop/repair.py": REPAIR.replace("from orders", "from shop.orders"),
            "other/orders.py": "",
        }
        main = MAIN.replace("import orders", "from shop import orders")
        trace = run_main({"main.py": main, **shop}, old)
        trace.rename(tmp_path / "trace.jsonl")
        old.rename(new)
        return tmp_path / "trace.jsonl", new

    def test_said(self, moved: Tuple[Path, Path], tmp_path: Path) -> None:
        """Sources that are not there are named, with what to do."""
        trace, _ = moved
        orders = str(tmp_path / "old" / "shop" / "orders.py")
        output = plan(trace)
        assert f"Not found: {orders}. What is said of it is from the trace alone" in output
        assert "Name the directory of the sources: --root PATH." in output
        assert planned(trace)["sources"]["missing"] == [orders]
        assert ("orders.py", "async def place, around this line") in said(trace, of="edits")

    @pytest.mark.parametrize(
        ("below", "root"), [("", ""), ("", "shop"), ("src", ""), ("src", "src")]
    )
    def test_found_again(self, moved: Tuple[Path, Path], below: str, root: str) -> None:
        """Below --root they are found by their place in it, wherever they were when traced."""
        trace, new = moved
        if below:
            (new / below).mkdir()
            (new / "shop").rename(new / below / "shop")
        assert "Not found" not in plan(trace, "--root", new / root)
        (step,) = planned(trace, "--root", new / root)["steps"]
        orders = os.path.realpath(new / below / "shop" / "orders.py")
        assert {each["file"] for each in step["edits"] if each["kind"] == "def"} == {orders}
        assert said(trace, "--root", new / root) == [BROKEN]

    def test_of_another_package(self, moved: Tuple[Path, Path]) -> None:
        """A file of that name in another package is not it."""
        trace, new = moved
        output = plan(trace, "--root", new / "other")
        assert "shop/orders.py. What is said of it" in output
        assert planned(trace, "--root", new / "other")["steps"] == []

    def test_installed(self, run_main: RunMain, tmp_path: Path) -> None:
        """What is installed is not missed: it is not the user's."""
        packages = "lib/site-packages/through.py"
        files = {
            "main.py": MAIN.replace("import orders", "import orders, lib").replace(
                "orders.place(1)", "lib.through(orders.place)"
            ),
            "orders.py": ORDERS,
            "lib/__init__.py": "import sys\nsys.path.append(__path__[0] + '/site-packages')\n"
            "from through import through\n",
            packages: "def through(function): return function(1)",
        }
        trace = run_main(files)
        (tmp_path / packages).unlink()
        assert "Not found" not in plan(trace)
