import os

import pytest

from mpsdiag.bisect.bisection import PREDICATE
from mpsdiag.bisect.environments import CELLS_NEED, Environments, cache_limit, for_cells
from mpsdiag.bisect.installer import Installer
from mpsdiag.errors import BadInput
from mpsdiag.release_environment import MARKER, read


@pytest.fixture
def environments(index):
    index.add_torch()
    with Environments(Installer()) as made:
        yield made


def build(environments, release):
    with environments.using([f"torch=={release}"]) as built:
        return built.name


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(environments):
    first, second, third = (build(environments, release) for release in ("2.0.0", "2.0.1", "2.1.0"))
    for name, moment in ((first, 1000), (second, 2000), (third, 3000)):
        os.utime(environments.folder / name / MARKER, (moment, moment))
    build(environments, "2.0.0")  # used again: now the newest
    environments.limit = 1
    with environments.using(["torch==2.0.1"]):
        made = build(environments, "2.1.1")
    left = {path.parent.name for path in environments.folder.glob(f"*/{MARKER}")}
    assert left == {second, made}  # in use, and just built
    environments.limit = 2**40
    build(environments, "2.2.0")
    assert {second, made} < {path.parent.name for path in environments.folder.glob(f"*/{MARKER}")}


def test_a_half_built_environment_is_built_again(environments):
    name = build(environments, "2.0.0")
    folder = environments.folder / name
    (folder / MARKER).unlink()
    (folder / "left over").touch()
    assert read(folder) is None
    assert build(environments, "2.0.0") == name
    assert "torch==2.0.0" in read(folder).freeze
    assert not (folder / "left over").exists()


def test_files_are_shared_between_environments(environments):
    names = [build(environments, "2.0.0"), None]
    with environments.using(["torch==2.0.0", "transformers"]) as built:
        names[1] = built.name
    files = [next((environments.folder / name).glob("lib/*/site-packages/torch/__init__.py")) for name in names]
    assert files[0].stat().st_ino == files[1].stat().st_ino


def test_what_is_built_ahead_is_there_when_it_is_asked_for(environments):
    environments.build_ahead(["torch==2.3.0"])
    name = build(environments, "2.3.0")
    assert read(environments.folder / name) is not None


def test_cells_of_bench_find_what_they_need_and_nobody_removes_it(environments, index):
    for name in CELLS_NEED:
        index.add(name, "99")
    name = build(environments, "2.0.0")
    with for_cells([name]):
        packages = next((environments.folder / name).glob("lib/*/site-packages"))
        assert (packages / "mpsdiag" / "bisect" / "predicate.py").samefile(PREDICATE)
        assert all((packages / f"{one}-99.dist-info").is_dir() for one in CELLS_NEED)
        environments.limit = 1
        build(environments, "2.0.1")
        assert read(environments.folder / name) is not None
    build(environments, "2.1.0")
    assert read(environments.folder / name) is None
    with pytest.raises(BadInput, match="There is no environment"), for_cells([name]):
        pass


def test_a_wheel_for_the_cpu_is_asked_for_on_linux_only_without_an_index_of_the_user(index, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert "--torch-backend" not in Installer(device="cpu").options  # UV_DEFAULT_INDEX is set
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setattr("mpsdiag.bisect.installer.SETTINGS", ())
    assert Installer(device="cpu").options[-2:] == ["--torch-backend", "cpu"]
    assert "--torch-backend" not in Installer(device="cuda").options
    assert "https://download.pytorch.org/whl/nightly/cpu" in Installer(device="cpu", nightly=True).options
    own = index.folder / "uv.toml"
    index.folder.mkdir(exist_ok=True)
    own.write_text('[[index]]\nurl = "https://example.org/simple"\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(own))
    assert "--torch-backend" not in Installer(device="cpu").options


def test_the_limit_is_a_number(monkeypatch):
    monkeypatch.setenv("MPSDIAG_CACHE_GIB", "0.5")
    assert cache_limit() == 2**29
    monkeypatch.setenv("MPSDIAG_CACHE_GIB", "much")
    with pytest.raises(BadInput, match="MPSDIAG_CACHE_GIB"):
        cache_limit()
