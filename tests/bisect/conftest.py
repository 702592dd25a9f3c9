"""A package index of tiny wheels in a folder: a torch of twenty releases, and what the pins ask for."""

import hashlib
import zipfile
from importlib import metadata

import pytest

RELEASES = [f"2.{minor}.{patch}" for minor in range(10) for patch in (0, 1)]
BROKE, CURED = "2.2.1", "2.7.0"


class Index:
    """A PEP 503 index: `simple/NAME/index.html` beside the files. The constants are the code of a release."""

    GOOD = "BROKEN = 0\n"
    BAD = "BROKEN = 1\n"
    CRASH = "import os\nos.kill(os.getpid(), 6)\n"
    HANG = "import time\ntime.sleep(600)\n"

    def __init__(self, folder):
        self.folder = folder
        self.pages = {}

    @property
    def address(self):
        return (self.folder / "simple").as_uri()

    def add(self, name, version, code="", *, requires=(), tag="py3-none-any", yanked=False, broken=False):
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}/__init__.py": f"__version__ = {version!r}\n{code}",
            f"{info}/METADATA": "\n".join(
                ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
                + [f"Requires-Dist: {one}" for one in requires]
            )
            + "\n",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{one},,\n" for one in [*files, f"{info}/RECORD"])
        page = self.folder / "simple" / name
        page.mkdir(parents=True, exist_ok=True)
        wheel = page / f"{name}-{version}-{tag}.whl"
        with zipfile.ZipFile(wheel, "w") as packed:
            for path, text in files.items():
                packed.writestr(path, text)
        if broken:
            wheel.write_bytes(wheel.read_bytes()[:-40])
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        mark = ' data-yanked="a mistake"' if yanked else ""
        self.pages.setdefault(name, {})[wheel.name] = f'<a href="{wheel.name}#sha256={digest}"{mark}>{wheel.name}</a>'
        (page / "index.html").write_text("<!DOCTYPE html><body>" + "<br>".join(self.pages[name].values()) + "</body>")
        return self

    def add_torch(self, **special):
        """Twenty releases: broken from BROKE on, cured from CURED on; `special` replaces some by their code."""
        for release in RELEASES:
            broken = RELEASES.index(BROKE) <= RELEASES.index(release) < RELEASES.index(CURED)
            given = special.get("v" + release.replace(".", "_"), self.BAD if broken else self.GOOD)
            self.add("torch", release, **(given if isinstance(given, dict) else {"code": given}))
        return self


@pytest.fixture(scope="session")
def uv_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("uv")


@pytest.fixture
def index(tmp_path, monkeypatch, uv_cache):
    """An index that uv uses, with what the pins ask for and nothing else yet; environments in a folder of the test."""
    made = Index(tmp_path / "index")
    for name in ("transformers", "accelerate"):
        made.add(name, metadata.version(name))
    monkeypatch.setenv("UV_DEFAULT_INDEX", made.address)
    monkeypatch.setenv("UV_CACHE_DIR", str(uv_cache))
    monkeypatch.setenv("MPSDIAG_CACHE", str(tmp_path / "cache"))
    for name in ("UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX", "UV_FIND_LINKS", "UV_TORCH_BACKEND", "UV_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predicate.py").write_text("import sys, torch\nprint(torch.__version__)\nsys.exit(torch.BROKEN)\n")
    return made


@pytest.fixture
def run(capsys):
    """Run the command; its exit code, stdout and stderr."""
    from mpsdiag.cli import main

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main(["bisect", "--device", "cpu", *words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call
