"""Make a virtual environment, unless it is there already.

    python3 .ci/environment.py .venvs/demo --groups demo

makes `.venvs/demo` and installs the project into it, editable, with all of its extras, and those
dependency groups of pyproject.toml. The environment is made anew when pyproject.toml or the
arguments change. The extension modules, which lie in the checkout, are compiled anew when their
sources change. It needs Python 3.8 or later, and nothing else; without a C compiler, there are no
extension modules.

uv does the work, in a tenth of pip's time. pip puts uv into `.venvs/tools`. Where that fails, or uv
does, pip installs everything, and a line says so.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(".venvs", "tools")
#: A file in each environment, with hashes of what it was made of. It is written last: without it,
#: an environment is half of one.
STAMP = "made"
#: Another file, in environments whose Python takes the extension modules: the suffix of their
#: files, a hash of what they are made of, and a hash of them, or MISSING if they could not be made.
#: They lie in the checkout, so another environment may have made others.
EXTENSIONS = "extensions"
MISSING = "missing"
#: Prints that suffix, or nothing. `takes_extensions` in setup.py has the same condition.
SUFFIX = """
import sys, sysconfig
is_taken = sys.implementation.name == "cpython" and (3, 10) <= sys.version_info < (3, 16)
if is_taken and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print(sysconfig.get_config_var("EXT_SUFFIX"))
"""

#: uv's variable for each of pip's settings that say where packages come from, and what separates
#: the items of a list there.
SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}


class Environment(NamedTuple):
    """A virtual environment that is wanted; `parse` says what each field means."""

    folder: Path
    python: str
    groups: Sequence[str]
    packages: Sequence[str]
    without: Sequence[str]
    project: bool
    compile: bool
    within: Sequence[str]

    def make(self) -> None:
        with alone(self.folder):
            stamps = self.stamps()
            if self.is_made(stamps):
                if not self.is_compiled():
                    self.compile_anew()
                    self.note_extensions()
                return
            began = time.perf_counter()
            try:
                self.fill_by_uv(find_uv())
            except (OSError, subprocess.CalledProcessError) as problem:
                log(f"{self.folder}: pip makes it, which takes longer, since uv failed: {problem}")
                self.fill_by_pip()
            self.note_extensions()
            (self.folder / STAMP).write_text("\n".join(stamps), encoding="utf-8")
            log(f"{self.folder}: made in {time.perf_counter() - began:.0f} s")

    def stamps(self) -> List[str]:
        """Hashes of what it is made of: with the Python, and without."""
        version = sys.version
        if self.python:
            version = output(*self.within, self.python, "-c", "import sys; print(sys.version)")
        made_of = repr(self[2:]) + Path("pyproject.toml").read_text(encoding="utf-8")
        return [hashlib.sha256((made_of + each).encode()).hexdigest() for each in (version, "")]

    def is_made(self, stamps: Sequence[str]) -> bool:
        """Whether it is there; of any Python, unless one is asked for."""
        try:
            there = (self.folder / STAMP).read_text(encoding="utf-8").split()
        except OSError:
            return False
        return there == stamps if self.python else there[-1:] == stamps[-1:]

    def is_compiled(self) -> bool:
        """Whether there is nothing to compile: all is there, or cannot be compiled or used."""
        try:
            suffix, made_of, made = (self.folder / EXTENSIONS).read_text("utf-8").split()
        except OSError:
            return True
        except ValueError:
            return False  # writing it was interrupted
        return made_of == hash_of_sources() and made == hash_of_extensions(suffix)

    def note_extensions(self) -> None:
        suffix = output(*self.within, self.own_python(), "-c", SUFFIX).strip()
        if not suffix or not self.project:
            return
        made = hash_of_extensions(suffix)
        if made == MISSING:
            log(f"{self.folder}: the engine in C cannot be compiled; the one in Python runs")
        note = f"{suffix} {hash_of_sources()} {made}"
        (self.folder / EXTENSIONS).write_text(note, encoding="utf-8")

    def compile_anew(self) -> None:
        log(f"{self.folder}: the extension modules are compiled anew")
        if (self.folder / "bin" / "pip").exists():
            settings = dict(os.environ)
            install = [self.own_python(), "-m", "pip", "install", "--force-reinstall"]
        else:
            uv = find_uv()
            settings = self.settings_of_uv(uv)
            install = [uv, "pip", "install", "--python", self.own_python()]
            install += ["--reinstall-package", "greenback"]
        if MISSING not in (self.folder / EXTENSIONS).read_text("utf-8"):
            # There is a compiler, so the sources are wrong.
            settings["GREENBACK_REQUIRE_COMPILED"] = "1"
        self.run(*install, "--quiet", "--no-deps", "--editable", ".", env=settings)

    def settings_of_uv(self, uv: str) -> Dict[str, str]:
        return {
            **settings_of_pip(),
            # Elsewhere, HOME is another, and a link does not reach from one mount to another.
            "UV_CACHE_DIR": cache_of(uv),
            **({"UV_LINK_MODE": "copy"} if self.within else {}),
            "UV_PYTHON_DOWNLOADS": "never",
            **os.environ,
        }

    def fill_by_uv(self, uv: str) -> None:
        remove(self.folder)
        settings = self.settings_of_uv(uv)
        python = self.python or sys.executable
        self.run(uv, "venv", "--quiet", "--python", python, str(self.folder), env=settings)
        install = [uv, "pip", "install", "--quiet", "--python", self.own_python()]
        if self.compile:
            install.append("--compile-bytecode")
        if self.without:
            unwanted = self.folder / "without.txt"
            unwanted.write_text("".join(f"{name}; python_version < '3'\n" for name in self.without))
            install += ["--overrides", str(unwanted)]
        for group in self.groups:
            install += ["--group", group]
        self.run(*install, *self.requirements(), env=settings)

    def fill_by_pip(self) -> None:
        remove(self.folder)
        make_empty(self.folder, self.python or sys.executable, self.within)
        pip = (self.own_python(), "-m", "pip", "install", "--quiet")
        # pip has understood dependency groups since 25.1, which needs Python 3.9.
        self.run(*pip, "--upgrade", "pip", "dependency-groups")
        packages = []
        if self.groups:
            expand = (self.own_python(), "-m", "dependency_groups")
            packages = output(*self.within, *expand, *self.groups).splitlines()
        wanted = [each for each in packages if name_of(each) not in self.without]
        self.run(*pip, *wanted, *self.requirements())

    def requirements(self) -> List[str]:
        return [*(["--editable", ".[all]"] if self.project else []), *self.packages]

    def own_python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *command: str, env: Optional[Dict[str, str]] = None) -> None:
        subprocess.run([*self.within, *command], check=True, env=env)


def hash_of_extensions(suffix: str) -> str:
    """A hash of the modules that setup.py makes, of each folder of C sources one; or MISSING."""
    found = hashlib.sha256()
    for folder in sorted({path.parent for path in Path().glob("greenback*/*/*.c")}):
        module = folder / f"_compiled{suffix}"
        if not module.is_file():
            return MISSING
        found.update(module.read_bytes())
    return found.hexdigest()


def hash_of_sources() -> str:
    found = hashlib.sha256(Path("setup.py").read_bytes())
    for variable in ("CC", "CFLAGS", "LDFLAGS"):
        found.update(f"{variable}={os.environ.get(variable)}\n".encode())
    for path in sorted(Path().glob("greenback*/*/*.[ch]")):
        found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()


def find_uv() -> str:
    """The path of uv, which pip installs if need be."""
    python, uv = (str(TOOLS / "bin" / name) for name in ("python", "uv"))
    with alone(TOOLS):
        if not (TOOLS / STAMP).is_file() or not os.path.exists(python):
            remove(TOOLS)
            make_empty(TOOLS, sys.executable)
            # There is nothing to gain from building it.
            pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-qq")
            subprocess.run([*pip, "--only-binary", ":all:", "uv>=0.7"], check=True)
            (TOOLS / STAMP).touch()
    return uv


def cache_of(uv: str) -> str:
    folder = Path(output(uv, "cache", "dir").strip())
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def settings_of_pip() -> Dict[str, str]:
    """Variables for uv that say what pip's files and variables do: uv does not read those."""
    listed = output(str(TOOLS / "bin" / "python"), "-m", "pip", "config", "list")
    found: Dict[str, str] = {}
    # The last that has a setting wins.
    for section in ("global", "install", ":env:"):
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            where, _, key = name.rpartition(".")
            if where == section and key in SETTINGS:
                variable, separator = SETTINGS[key]
                found[variable] = separator.join(str(ast.literal_eval(value)).split())
    if "UV_INDEX" in found:
        # pip takes the newest of all indexes; uv would take the first that has the package.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


def make_empty(folder: Path, python: str, within: Sequence[str] = ()) -> None:
    """Make an environment that has nothing but pip."""
    if subprocess.run([*within, python, "-c", "import ensurepip, venv"], check=False).returncode:
        raise SystemExit(
            f"{python} cannot make virtual environments; on Debian: apt-get install python3-venv"
        )
    subprocess.run([*within, python, "-m", "venv", str(folder)], check=True)


def remove(folder: Path) -> None:
    if folder.exists():
        # First, so that what is left of an interrupted removal is half an environment.
        if (folder / STAMP).exists():
            (folder / STAMP).unlink()
        shutil.rmtree(folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that are making the folder."""
    TOOLS.parent.mkdir(exist_ok=True)
    with open(TOOLS.parent / f"{folder.name}.lock", "w", encoding="utf-8") as lock:
        try:
            import fcntl
        except ImportError:  # Windows
            pass
        else:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> Environment:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help=".venv, or a folder in .venvs")
    add(
        "--python",
        default="",
        help="what makes the environment, anew if it is of another version; by default, the Python "
        "that runs this makes it, and an environment of another one is kept",
    )
    add("--groups", nargs="*", default=(), help="dependency groups to install")
    add("--packages", nargs="*", default=(), help="more requirements to install")
    add("--without", nargs="*", default=(), help="packages of the groups that are left out")
    add("--no-project", dest="project", action="store_false", help="do not install the project")
    add("--compile", action="store_true", help="compile all installed modules now")
    add(
        "--within",
        default=(),
        type=shlex.split,
        help="a command that runs other commands where PYTHON is, and in the same folder",
    )
    wanted = Environment(**vars(parser.parse_args()))
    # It may be removed.
    if wanted.folder != Path(".venv") and wanted.folder.parent != TOOLS.parent:
        parser.error(f"{wanted.folder} is neither .venv nor in {TOOLS.parent}")
    return wanted


def main() -> None:
    wanted = parse()
    os.chdir(ROOT)
    # It says which engine a program runs. Here, the build would leave the old extensions in place.
    os.environ.pop("GREENBACK_PURE", None)
    try:
        wanted.make()
    except (OSError, subprocess.CalledProcessError) as problem:
        raise SystemExit(f"{wanted.folder} cannot be made: {problem}") from None


if __name__ == "__main__":
    main()
