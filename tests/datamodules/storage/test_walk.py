"""Searching of folders with links, loops, pipes and broken links."""

import os

import pytest

from datamodules.storage import folders
from datamodules.storage.audio import audio_files, read_recording
from datamodules.storage.images import image_files, read_image
from datamodules.storage.meshes import read_mesh


def _names(folder):
    return [place.as_posix() for _, place in image_files(folder)]


@pytest.fixture
def linked(tmp_path):
    """Return a folder with one image and a link to a folder of two, which has a link to itself and one to its parent."""
    for name in ("near/a.png", "far/b.png", "far/below/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "near" / "more").symlink_to("../far", target_is_directory=True)
    (tmp_path / "far" / "back").symlink_to("../far", target_is_directory=True)
    (tmp_path / "far" / "below" / "up").symlink_to("../../far", target_is_directory=True)
    return tmp_path / "near"


def test_linked_folders_are_followed_and_loops_are_not(linked):
    assert _names(linked) == ["a.png", "more/b.png", "more/below/c.png"]


def test_a_folder_is_searched_once_and_without_a_link_if_possible(linked):
    (linked / "again").symlink_to(linked.parent / "far", target_is_directory=True)
    assert _names(linked) == ["a.png", "again/b.png", "again/below/c.png"]
    (linked / "copy").mkdir()
    (linked / "copy" / "d.png").touch()
    (linked / "a link").symlink_to("copy", target_is_directory=True)
    assert "copy/d.png" in _names(linked)
    assert "a link/d.png" not in _names(linked)


def test_a_link_to_a_folder_above_the_search_is_not_followed(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.png").touch()
    (tmp_path / "root" / "up").symlink_to("..", target_is_directory=True)
    assert _names(tmp_path / "root") == []


def test_a_linked_file_is_a_file_of_its_own(linked):
    (linked / "z.png").symlink_to("a.png")
    assert _names(linked) == ["a.png", "more/b.png", "more/below/c.png", "z.png"]


def test_a_linked_folder_of_predictions_is_skipped(linked):
    (linked.parent / "far" / "predictions.csv").touch()
    assert _names(linked) == ["a.png"]


def test_broken_links_are_named(linked, capsys):
    folders.report_unreachable.cache_clear()
    (linked / "gone").symlink_to("../nowhere", target_is_directory=True)
    (linked / "self").symlink_to("self")
    (linked / "gone.png").symlink_to("../nowhere.png")
    assert "gone.png" in _names(linked)
    printed = capsys.readouterr().err
    assert f"{linked / 'gone'}: it is a link to ../nowhere, which does not exist" in printed
    assert f"{linked / 'self'}" in printed
    with pytest.raises(
        ValueError, match=r"gone\.png cannot be read: it is a link to \.\./nowhere\.png, which does not"
    ):
        read_image(linked / "gone.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_listed_and_not_opened(tmp_path):
    for name in ("a.png", "a.wav"):
        os.mkfifo(tmp_path / name)
    assert _names(tmp_path) == []
    assert audio_files(tmp_path) == []
    for read, name in ((read_image, "a.png"), (read_recording, "a.wav")):
        with pytest.raises(ValueError, match=f"{name} cannot be read: it is a pipe"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("v 0 0 0\nv 1 0\nv 0 1 0\nf 1 2 3\n", r"a\.obj, line 2: the vertex '1 0' has not three finite numbers"),
        ("v 0 0 0\nv 1 nan 0\nv 0 1 0\nf 1 2 3\n", r"a\.obj, line 2: the vertex '1 nan 0'"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", r"a\.obj, line 4: a face refers to vertex 9 of 3"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -9\n", r"a\.obj, line 4: a face refers to vertex -9"),
    ],
)
def test_a_faulty_obj_is_named_with_its_line(tmp_path, lines, message):
    (tmp_path / "a.obj").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_mesh(tmp_path / "a.obj")
