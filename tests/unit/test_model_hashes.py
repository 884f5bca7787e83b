"""What is loaded is what was hashed, and with a list of hashes only what it names."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from exported_networks import Yolo, as_torchscript

from app.detection.model_files import find_models, hash_model
from app.detection.registry import load_detector
from app.errors import ModelFault
from app.settings import Settings


@pytest.fixture(scope="module")
def network() -> bytes:
    return as_torchscript(Yolo())


@pytest.fixture
def models(tmp_path: Path, network: bytes) -> Path:
    """Model "file", with a declaration beside it, and model "folder"."""
    folder = tmp_path / "models"
    (folder / "folder" / "notes").mkdir(parents=True)
    (folder / "file.torchscript").write_bytes(network)
    (folder / "file.toml").write_text("min_score = 0.3\n")
    (folder / "folder" / "network.torchscript").write_bytes(network)
    (folder / "folder" / "notes" / "readme.txt").write_text("trained in June\n")
    return folder


@pytest.fixture
def allowed(models: Path, tmp_path: Path) -> Path:
    """The list that the documented command makes."""
    listing = subprocess.run(
        ["find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+"],
        cwd=models,
        capture_output=True,
        check=True,
        timeout=30,
    )
    file = tmp_path / "models.sha256"
    file.write_bytes(listing.stdout)
    return file


def load(models: Path, name: str, allowed: Path | None) -> None:
    load_detector(name, device="cpu", models_folder=models, allowed_hashes=allowed)


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_sha256sum_lists_is_loaded(models: Path, allowed: Path, name: str) -> None:
    load(models, name, allowed)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("file", "file.torchscript"),
        ("file", "file.toml"),
        ("folder", "folder/network.torchscript"),
        ("folder", "folder/notes/readme.txt"),
    ],
)
def test_a_file_of_another_hash_is_refused(models: Path, allowed: Path, name: str, file: str) -> None:
    before = hashlib.sha256((models / file).read_bytes()).hexdigest()
    (models / file).write_bytes((models / file).read_bytes() + b"\n")
    after = hashlib.sha256((models / file).read_bytes()).hexdigest()
    with pytest.raises(ModelFault) as caught:
        load(models, name, allowed)
    assert caught.value.detail == (
        f"Model '{name}' is refused: the SHA-256 of {file} is {after}, but the list of allowed hashes says "
        f"{before}."
    )


def test_a_file_that_is_not_listed_is_refused_with_the_line_to_add(models: Path, allowed: Path) -> None:
    (models / "folder" / "framebox.toml").write_text("min_score = 0.3\n")
    with pytest.raises(ModelFault) as caught:
        load(models, "folder", allowed)
    line = caught.value.detail.rpartition("prints for it: ")[2]
    with allowed.open("a") as file:
        file.write(f"{line}\n")
    load(models, "folder", allowed)


def test_a_hash_is_of_one_path(models: Path, allowed: Path, network: bytes) -> None:
    (models / "copy.torchscript").write_bytes(network)
    with pytest.raises(ModelFault, match=r"copy\.torchscript is not in the list of allowed hashes"):
        load(models, "copy", allowed)


@pytest.mark.parametrize("content", [b"nonsense\n", b"0123  ./file.torchscript\n", b"\xff\xfe\n", None])
def test_a_list_that_cannot_be_read_allows_nothing(
    models: Path, allowed: Path, content: bytes | None
) -> None:
    if content is None:
        allowed.unlink()
    else:
        allowed.write_bytes(allowed.read_bytes() + content)
    with pytest.raises(ModelFault, match="no model file is loaded"):
        load(models, "file", allowed)


def test_comments_and_empty_lines_are_passed_over(models: Path, allowed: Path) -> None:
    allowed.write_text(f"# approved in June\n\n{allowed.read_text()}")
    load(models, "file", allowed)


def test_the_built_in_detectors_need_no_list(models: Path, tmp_path: Path) -> None:
    load(models, "hog-people", tmp_path / "absent")


def test_the_list_is_a_setting(tmp_path: Path) -> None:
    assert Settings(model_hashes=tmp_path / "list").model_hashes == tmp_path / "list"


# ---- what is loaded is what was hashed


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_file_that_changes_after_it_was_hashed_is_not_loaded(models: Path, name: str) -> None:
    content = hash_model(name, *find_models(models)[name])
    network = next(file for file in content.digests if file.endswith(".torchscript"))
    (content.folder / network).write_bytes(b"something else")
    with pytest.raises(ModelFault, match="changed while it was loaded"):
        content.read(network)


def test_a_link_out_of_the_folder_is_refused(models: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    (models / "folder" / "notes" / "link.txt").symlink_to(outside)
    with pytest.raises(ModelFault, match="link that leads out of the folder of models"):
        load(models, "folder", None)


def test_a_link_within_the_folder_is_followed(models: Path) -> None:
    (models / "again.torchscript").symlink_to(models / "file.torchscript")
    load(models, "again", None)


def test_a_folder_of_very_many_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for number in range(1001):
        (folder / f"{number}.txt").touch()
    with pytest.raises(ModelFault, match="has more than 1000 files"):
        hash_model("model", folder)


def test_the_fingerprint_of_a_folder_covers_names_and_content(models: Path) -> None:
    def fingerprint() -> str:
        return hash_model("folder", *find_models(models)["folder"]).fingerprint(1)

    seen = {fingerprint()}
    readme = models / "folder" / "notes" / "readme.txt"
    readme.rename(readme.with_name("other.txt"))
    seen.add(fingerprint())
    (readme.with_name("other.txt")).write_text("trained in July\n")
    seen.add(fingerprint())
    readme.touch()
    seen.add(fingerprint())
    assert len(seen) == 4
