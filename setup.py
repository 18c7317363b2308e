"""The extension modules, which are optional. pyproject.toml has everything else.

Without a C compiler, or where it fails, the installation succeeds, and the wheel fits every Python.
These variables of the build change that:

GREENBACK_REQUIRE_COMPILED=1  An extension that cannot be compiled fails the build.
GREENBACK_PURE=1              No extension is compiled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
from glob import glob
from pathlib import Path
from typing import Any, Dict, List

import setuptools
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

#: Each folder of C sources, and the module that they make.
MODULES = {
    "greenback/_engine": "greenback._engine._compiled",
    "greenback_trace/count": "greenback_trace.count._compiled",
}
#: `greenback-trace explain` prints these pages. An installed package has them in a folder of its
#: own, a checkout has docs/.
PAGES = ("docs/safe.rst", "docs/alerts.rst")
PACKAGED_PAGES = ("greenback_trace", "report", "pages")
#: Has a file for each extension in the checkout, which says what it was made of.
MADE = Path("build", "in-place")


def extensions() -> List[setuptools.Extension]:
    if not takes_extensions() or is_set("GREENBACK_PURE"):
        return []
    return [
        setuptools.Extension(
            module,
            sorted(glob(f"{folder}/*.c")),
            depends=headers(),
            optional=not is_set("GREENBACK_REQUIRE_COMPILED"),
        )
        for folder, module in MODULES.items()
        if glob(f"{folder}/*.c")
    ]


def takes_extensions() -> bool:
    """Whether the engine in C is written for this Python."""
    return (
        sys.implementation.name == "cpython"
        and (3, 10) <= sys.version_info < (3, 16)
        and not sysconfig.get_config_var("Py_GIL_DISABLED")
    )


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def headers() -> List[str]:
    return sorted(path for folder in MODULES for path in glob(f"{folder}/*.h"))


class BuildExtensions(build_ext):
    """Leaves out what cannot be compiled. In a checkout, compiles only what has changed."""

    def run(self) -> None:
        self._is_in_place = bool(self.inplace)
        self._compiled: List[str] = []
        super().run()
        if self._is_in_place:
            return
        # setuptools would still tag the wheel, and lay it out, for a package with extensions.
        self.extensions[:] = [each for each in self.extensions if each.name in self._compiled]
        wheel: Any = self.distribution.get_command_obj("bdist_wheel", create=False)
        if wheel is not None and not self.extensions:
            wheel.root_is_pure = True

    def build_extensions(self) -> None:
        if self.compiler.compiler_type != "msvc":
            for each in self.extensions:
                each.extra_compile_args += ["-fno-strict-aliasing", "-fvisibility=hidden"]
                if "-O" not in os.environ.get("CFLAGS", ""):
                    each.extra_compile_args.append("-O2")
        super().build_extensions()

    def build_extension(self, ext: setuptools.Extension) -> None:
        if self._is_in_place:
            if self._is_up_to_date(ext):
                return
            self.force = True  # setuptools looks at times only, not at compilers and flags
        try:
            super().build_extension(ext)
        except BaseException:
            if self._is_in_place:
                # It is of other sources. Nobody is to take it for what these make.
                remove(self._in_checkout(ext))
            raise
        self._compiled.append(ext.name)

    def copy_extensions_to_source(self) -> None:
        for each in self.extensions:
            if each.name in self._compiled:
                target = self._in_checkout(each)
                # At once: another process may be importing the one that is there.
                new = f"{target}.{os.getpid()}"
                shutil.copy(os.path.join(self.build_lib, str(target)), new)
                os.replace(new, str(target))
                MADE.mkdir(parents=True, exist_ok=True)
                self._note(each).write_text(made_of(each), encoding="utf-8")

    def _is_up_to_date(self, ext: setuptools.Extension) -> bool:
        try:
            noted = self._note(ext).read_text(encoding="utf-8")
        except OSError:
            return False
        return self._in_checkout(ext).exists() and noted == made_of(ext)

    def _in_checkout(self, ext: setuptools.Extension) -> Path:
        return Path(self.get_ext_filename(ext.name))  # type: ignore[no-untyped-call]

    def _note(self, ext: setuptools.Extension) -> Path:
        return MADE / self._in_checkout(ext).name.replace("_compiled", ext.name, 1)


def made_of(ext: setuptools.Extension) -> str:
    """A hash of all that decides what the compiler makes."""
    made = hashlib.sha256(sys.version.encode())
    for variable in ("CC", "CPPFLAGS", "CFLAGS", "LDFLAGS", "LDSHARED"):
        made.update(f"\n{variable}={os.environ.get(variable)}".encode())
    for path in (__file__, *ext.sources, *ext.depends):
        made.update(Path(path).read_bytes())
    return made.hexdigest()


def remove(path: Path) -> None:
    if path.exists():
        path.unlink()


class BuildPackages(build_py):
    """Copies the pages into the package, too."""

    def run(self) -> None:
        # A module that was removed since the last build in this checkout would be in the wheel.
        for package in {each.partition(".")[0] for each in self.packages or ()}:
            shutil.rmtree(os.path.join(self.build_lib, package), ignore_errors=True)
        super().run()
        if not self.editable_mode:
            folder = os.path.join(self.build_lib, *PACKAGED_PAGES)
            self.mkpath(folder)
            for page in PAGES:
                self.copy_file(page, folder)


def license_argument() -> Dict[str, Any]:
    # setuptools 77 was the first that takes an expression, also as `license` of the project in
    # pyproject.toml. 75.3 was the last for Python 3.8.
    takes_expressions = int(setuptools.__version__.partition(".")[0]) >= 77
    name = "license_expression" if takes_expressions else "license"
    return {name: "MIT OR Apache-2.0"}


setuptools.setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPackages},
    **license_argument(),
)
