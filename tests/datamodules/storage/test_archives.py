"""Archives are unpacked completely or not at all, and never outside their folder."""

import contextlib
import errno
import gzip
import io
import multiprocessing
import os
import random
import shutil
import stat
import struct
import tarfile
import threading
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.storage import archives as module
from datamodules.storage.archives import _member_path, _RefusedError, extract

FILES = {
    "set/train/a/one.txt": b"one",
    "set/train/b/two.bin": random.Random(1).randbytes(300_000),
    "set/val/empty": b"",
    "set/readme é.txt": b"hello" * 1000,
}


def _info(name, size=0, **changes):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def _tar(path, *members, mode="w:gz", form=tarfile.PAX_FORMAT):
    """Write a tar of (name or TarInfo, bytes)."""
    with tarfile.open(path, mode, format=form) as tar:
        for member, content in members:
            info = _info(member) if isinstance(member, str) else member
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return path


def _zip(path, *members):
    """Write a zip of (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return path


def _link(name, target, kind=tarfile.SYMTYPE):
    return _info(name, type=kind, linkname=target)


def _entry(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def _tree(folder):
    """Return the content of the files in a folder by path; ``"link"`` for links."""
    return {
        str(path.relative_to(folder)): "link" if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _listing(folder):
    return sorted(path.name for path in folder.iterdir())


def _refusal(archive, **options):
    """Return the error message of an extraction, after checking that it left no files."""
    home = archive.parent
    before = sorted(home.rglob("*"))
    with pytest.raises(ValueError, match=str(archive.name)) as caught:
        extract(archive, home / "out", **options)
    assert sorted(home.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 600
    return message


@pytest.fixture(params=["a.tgz", "a.tar.gz", "a.tar", "a.zip", "gnu.tar", "ustar.tgz"])
def archive(request, tmp_path):
    """Return an archive of `FILES` in every format."""
    path = tmp_path / request.param
    if path.suffix == ".zip":
        return _zip(path, ("set/", b""), *FILES.items())
    forms = {"gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
    mode = "w" if path.suffix == ".tar" else "w:gz"
    folder = (_info("./set/", type=tarfile.DIRTYPE, mode=0), b"")
    return _tar(path, folder, *FILES.items(), mode=mode, form=forms.get(path.stem, tarfile.PAX_FORMAT))


def test_files_are_unpacked(archive, tmp_path):
    folder = extract(archive, tmp_path / "deep" / "out")
    assert folder == tmp_path / "deep" / "out"
    assert _tree(folder) == FILES
    assert _listing(tmp_path / "deep") == ["out"]


def test_selected_files_and_folders_are_unpacked(archive, tmp_path):
    folder = extract(archive, tmp_path / "out", members=["set/train/b", "./set/val/empty"])
    assert _tree(folder) == {name: FILES[name] for name in ("set/train/b/two.bin", "set/val/empty")}
    shutil.rmtree(folder)
    assert "does not contain 'set/tr'" in _refusal(archive, members=["set/tr", "set/train"])


def test_folder_with_files_is_not_changed(archive, tmp_path):
    folder = extract(archive, tmp_path / "out")
    (folder / "mark").write_text("mine")
    assert extract(archive, folder) == folder
    assert (folder / "mark").exists()
    archive.unlink()
    assert extract(archive, folder) == folder


def test_files_of_a_killed_process_are_removed(archive, tmp_path):
    (tmp_path / "out").mkdir()  # empty
    (tmp_path / "out.part" / "set").mkdir(parents=True)
    (tmp_path / "out.part" / "set" / "half").write_text("half")
    (tmp_path / "out.lock").touch()
    assert _tree(extract(archive, tmp_path / "out")) == FILES
    assert _listing(tmp_path) == sorted([archive.name, "out"])


def test_interrupted_extraction_leaves_no_files(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(module._Extraction, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "out")
    assert _listing(tmp_path) == [archive.name]


def test_truncated_archives_are_detected(archive, tmp_path):
    content = archive.read_bytes()
    (tmp_path / "truncated").mkdir()
    truncated = tmp_path / "truncated" / archive.name
    ends = [*random.Random(2).sample(range(len(content)), 20), 0, 1, 100, 511, 512, 513, 1024, 1536, len(content) // 2]
    if archive.suffix != ".tar":
        ends += [len(content) - 1, len(content) - 8]
    else:  # a tar may end with many blocks of zeros
        ends = [end for end in ends if end <= len(content.rstrip(b"\0"))]
    for end in ends:
        truncated.write_bytes(content[:end])
        message = _refusal(truncated)
        assert any(problem in message for problem in ("damaged or truncated", "is empty", "is not an archive"))


@pytest.mark.parametrize("where", [0.2, 0.5, 0.7])
def test_flipped_bytes_are_detected(tmp_path, where):
    for path in (_tar(tmp_path / "a.tgz", *FILES.items()), _zip(tmp_path / "a.zip", *FILES.items())):
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 0xFF
        path.write_bytes(content)
        assert "damaged" in _refusal(path)


def test_damaged_header_is_not_the_end(tmp_path):
    path = _tar(tmp_path / "a.tar", *[(f"f{index}", b"x") for index in range(3)], mode="w", form=tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[1024] ^= 1  # the name of the second member
    path.write_bytes(content)
    assert "bad checksum" in _refusal(path)


HOSTILE = {
    "/etc/evil": "is absolute",
    "//evil": "is absolute",
    "C:/evil": "is absolute",
    "c:evil": "is absolute",
    "\\evil": "is absolute",
    "../evil": "leads out",
    "..": "leads out",
    "a/../../evil": "leads out",
    "a/../evil": "leads out",
    "a\\..\\..\\evil": "leads out",
    "./..": "leads out",
    "a\\b": "is invalid",
    "a/b:stream": "is invalid",
    "a/nul": "is invalid",
    "COM1.txt": "is invalid",
    "... ": "is invalid",
    "a/.. /b": "is invalid",
    "a./b": "is invalid",
    "line\nbreak": "is invalid",
    "\x1b[31mred": "is invalid",
    "n/" * 600 + "deep": "has 1,204 characters",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_unsafe_names_are_rejected(tmp_path, name):
    members = [("good", b"good"), (name, b"evil")]
    for path in (_tar(tmp_path / "a.tgz", *members), _zip(tmp_path / "a.zip", *members)):
        message = _refusal(path)
        assert HOSTILE[name] in message
        assert ascii(name)[:90] in message
    folder = (_info(name, type=tarfile.DIRTYPE), b"")
    assert HOSTILE[name] in _refusal(_tar(tmp_path / "b.tar", folder, mode="w"))
    assert HOSTILE[name] in _refusal(tmp_path / "a.zip", members=["good"])


def test_name_with_a_zero_byte_is_rejected(tmp_path):
    path = _zip(tmp_path / "a.zip", ("goodXbad", b"x"))
    path.write_bytes(path.read_bytes().replace(b"goodXbad", b"good\0bad"))
    assert "is invalid" in _refusal(path)


@given(st.text(alphabet="ab../\\: \0C", min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_accepted_paths_stay_inside(name):
    try:
        path = _member_path(name)
    except _RefusedError:
        return
    inside = os.path.normpath(f"/root/in/{path}")
    assert inside == "/root/in" or inside.startswith("/root/in/")
    assert inside == os.path.normpath(f"/root/in/{name}")
    assert not set("\\:\0") & set(path)


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        (_link("in/link", "/etc/passwd"), "is absolute"),
        (_link("in/link", "../../outside"), "leads out"),
        (_link("in/link", "..\\..\\outside"), "leads out"),
        (_link("in/link", "C:\\outside"), "is absolute"),
        (_link("in/link", ".."), "is not an unpacked file"),
        (_link("in/link", "../good/.."), "is not an unpacked file"),
        (_link("in/link", "missing"), "is not an unpacked file"),
        (_link("in/link", "link"), "is not an unpacked file"),
        (_link("in/link", ""), "is not an unpacked file"),
        (_link("hard", "../outside", tarfile.LNKTYPE), "leads out"),
        (_link("hard", "/etc/passwd", tarfile.LNKTYPE), "is absolute"),
        (_link("in/hard", "hard", tarfile.LNKTYPE), "is not an unpacked file"),
        (_info("pipe", type=tarfile.FIFOTYPE), "device or a pipe"),
        (_info("disk", type=tarfile.BLKTYPE, devmajor=8), "device or a pipe"),
        (_info("zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "device or a pipe"),
        (_info("odd", type=b"9"), "device or a pipe"),
    ],
    ids=lambda value: f"{value.name}-{value.linkname}" if isinstance(value, tarfile.TarInfo) else "",
)
def test_unsafe_links_and_devices_are_rejected(tmp_path, link, problem):
    (tmp_path / "outside").write_text("secret")
    message = _refusal(_tar(tmp_path / "a.tgz", ("good", b"good"), (link, b"")))
    assert problem in message
    assert ascii(link.name) in message


def test_links_become_copies(tmp_path):
    path = _tar(
        tmp_path / "a.tgz",
        (_link("x/early", "../y/file"), b""),
        (_link("x/chain", "early"), b""),
        ("y/file", b"content"),
        (_link("z/hard", "y/file", tarfile.LNKTYPE), b""),
        (_link("x/early", "../y/file"), b""),
    )
    folder = extract(path, tmp_path / "out")
    assert _tree(folder) == dict.fromkeys(["x/early", "x/chain", "y/file", "z/hard"], b"content")
    (folder / "z" / "hard").write_bytes(b"changed")
    assert (folder / "y" / "file").read_bytes() == b"content"
    shutil.rmtree(folder)
    assert "is not an unpacked file" in _refusal(path, members=["x"])


def test_links_of_zip_files_become_copies(tmp_path):
    link = _entry("x/link", stat.S_IFLNK | 0o777)
    path = _zip(tmp_path / "a.zip", ("y/file", b"content"), (link, b"../y/file"))
    assert _tree(extract(path, tmp_path / "out")) == {"y/file": b"content", "x/link": b"content"}
    shutil.rmtree(tmp_path / "out")
    for target, problem in (("/etc/passwd", "absolute"), ("../../out", "leads out"), ("a" * 2000, "2,000 characters")):
        link = _entry("x/link", stat.S_IFLNK | 0o777)
        assert problem in _refusal(_zip(tmp_path / "b.zip", ("y/file", b"content"), (link, target)))
    for kind in (stat.S_IFIFO, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK):
        assert "device or a pipe" in _refusal(_zip(tmp_path / "c.zip", (_entry("odd", kind), b"")))


@pytest.mark.parametrize("target", [".", "/tmp", ".."])
def test_links_are_not_followed(tmp_path, target):
    path = _tar(tmp_path / "a.tgz", (_link("way", target), b""), ("way/evil", b"evil"))
    message = _refusal(path)
    assert "two different members 'way'" in message or "link 'way'" in message


def test_files_have_default_permissions(tmp_path):
    modes = {"setuid": 0o4755, "none": 0o000, "open": 0o777}
    paths = [
        _tar(tmp_path / "a.tgz", *[(_info(name, mode=mode), b"x") for name, mode in modes.items()]),
        _zip(tmp_path / "a.zip", *[(_entry(name, stat.S_IFREG | mode), b"x") for name, mode in modes.items()]),
    ]
    plain = tmp_path / "plain"
    plain.touch()
    for index, path in enumerate(paths):
        folder = extract(path, tmp_path / str(index))
        assert {file.stat().st_mode for file in folder.iterdir()} == {plain.stat().st_mode}


def test_only_equal_duplicates_are_accepted(tmp_path):
    files = [("a/file", b"content"), ("a/other", b"")]
    for make, name in ((_tar, "a.tgz"), (_zip, "a.zip")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # zipfile warns about duplicates
            path = make(tmp_path / name, *files, ("./a//file", b"content"))
            assert _tree(extract(path, tmp_path / f"out {name}")) == dict(files)
            shutil.rmtree(tmp_path / f"out {name}")
            for second in (b"Content", b"conten", b"contents", b""):
                path = make(tmp_path / name, *files, ("a/file", second))
                assert "two different members 'a/file'" in _refusal(path)
            for clash in ("a", "a/file/below"):
                assert "two different members" in _refusal(make(tmp_path / name, *files, (clash, b"")))


def test_only_equal_duplicate_links_are_accepted(tmp_path):
    files = [("one", b"1"), ("two", b"2"), (_link("link", "one"), b"")]
    assert "two different members" in _refusal(_tar(tmp_path / "a.tgz", *files, (_link("link", "two"), b"")))
    assert "two different members" in _refusal(_tar(tmp_path / "a.tgz", *files, ("link", b"1")))


def test_huge_member_is_rejected(tmp_path):
    huge = _info("huge", size=2 * 10**9).tobuf() + bytes(1024)
    (tmp_path / "a.tar").write_bytes(huge)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(huge, mtime=0))
    path = _zip(tmp_path / "a.zip", ("huge", b"x" * 10))
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    sizes = struct.pack("<I", 2 * 10**9)
    path.write_bytes(content[: directory + 24] + sizes + content[directory + 28 :])
    for archive in ("a.tar", "a.tgz", "a.zip"):
        message = _refusal(tmp_path / archive)
        assert "more than 1.0 GB" in message
        assert "'huge'" in message


def test_huge_total_size_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MIN_LIMIT", 10_000)
    many = [(f"f{index}", bytes(60_000)) for index in range(10)]
    for path in (_tar(tmp_path / "a.tgz", *many), _zip(tmp_path / "a.zip", *many)):
        assert 100 * path.stat().st_size < 600_000
        assert "100 times its size" in _refusal(path)
        assert "100 times its size" in _refusal(path, members=["f9"])
    links = [(_link(f"link{index}", "file"), b"") for index in range(3000)]
    path = _tar(tmp_path / "b.tgz", ("file", bytes(3000)), *links)
    assert 100 * path.stat().st_size < 9_000_000
    assert "100 times its size" in _refusal(path)


def test_maximum_ratio_is_accepted(tmp_path, monkeypatch):
    path = _zip(tmp_path / "a.zip", ("zeros", bytes(100_000)))
    monkeypatch.setattr(module, "_MIN_LIMIT", 0)
    monkeypatch.setattr(module, "_MAX_RATIO", -(-100_000 // path.stat().st_size))
    assert (extract(path, tmp_path / "out") / "zeros").stat().st_size == 100_000
    monkeypatch.setattr(module, "_MAX_RATIO", 100_000 // path.stat().st_size)
    shutil.rmtree(tmp_path / "out")
    assert "would unpack to more" in _refusal(path)


def test_too_many_members_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_MEMBERS", 5)
    five = [(f"f{index}", b"") for index in range(5)]
    assert len(_tree(extract(_zip(tmp_path / "a.zip", *five), tmp_path / "five"))) == 5
    for path in (_zip(tmp_path / "a.zip", *five, ("last", b"")), _tar(tmp_path / "a.tgz", *five, ("last", b""))):
        assert "more than 5 members" in _refusal(path)


def test_huge_and_nested_headers_are_rejected(tmp_path):
    end = _info("file").tobuf() + bytes(1024)
    pax = _info("x", size=10**9, type=tarfile.XHDTYPE).tobuf()
    negative = _info("x", type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    negative = negative[:124] + (2**96 - 1024).to_bytes(12, "big") + negative[136:]
    nested = _info("x", size=512, type=tarfile.XHDTYPE).tobuf() + b"12 path=abc\n".ljust(512, b"\0")
    for content in (pax, negative, nested * 3000, _endless_sparse_map()):
        path = tmp_path / "a.tgz"
        path.write_bytes(gzip.compress(_checked(content + end)))
        assert "the header of a member has more than 16,384 bytes" in _refusal(path)


def _checked(content):
    """Return a tar whose first header has the correct checksum."""
    header = bytearray(content[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


def _endless_sparse_map():
    """Return the header of a GNU sparse file with a very long map."""
    header = bytearray(_info("sparse", type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    block = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    return bytes(header) + block * 10_000


def test_negative_size_is_rejected(tmp_path):
    header = bytearray(_info("file").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12
    (tmp_path / "a.tar").write_bytes(_checked(bytes(header)) + bytes(1024))
    assert "negative size" in _refusal(tmp_path / "a.tar")
    info = _info("file")
    info.pax_headers = {"size": "-1024"}
    path = _tar(tmp_path / "b.tar", (info, b""), mode="w")
    assert "negative size" in _refusal(path)


def test_too_many_zeros_after_the_end_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MIN_LIMIT", 10_000)
    plain = _tar(tmp_path / "a.tar", ("file", b"x"), mode="w").read_bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(plain + bytes(3_000_000)))
    assert "does not end" in _refusal(tmp_path / "a.tgz")


def test_encrypted_zip_files_and_unknown_compression_are_rejected(tmp_path):
    path = _zip(tmp_path / "a.zip", ("secret", b"x"))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted (member 'secret')" in _refusal(path)
    path = _zip(tmp_path / "a.zip", ("odd", b"x"))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = 97
    path.write_bytes(content)
    assert "damaged" in _refusal(path)


def test_zip_file_with_contradicting_names_is_rejected(tmp_path):
    path = _zip(tmp_path / "a.zip", ("innocent", b"x"))
    path.write_bytes(path.read_bytes().replace(b"innocent", b"guilty!!", 1))
    assert "differ" in _refusal(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Quota</title>" * 99, "is a web page"),
        (b"Rar!\x1a\x07" * 99, "is not an archive"),
        (bytes(10240), "contains no files"),
        (gzip.compress(b"not a tar", mtime=0), "damaged"),
    ],
)
def test_other_files_are_rejected(tmp_path, content, problem):
    (tmp_path / "a.zip").write_bytes(content)
    assert problem in _refusal(tmp_path / "a.zip")


def test_archives_without_files_are_rejected(tmp_path):
    assert "contains no files" in _refusal(_zip(tmp_path / "a.zip"))
    assert "contains no files" in _refusal(_tar(tmp_path / "a.tgz"))


def test_paths_that_cannot_be_read_or_written_are_reported(tmp_path):
    with pytest.raises(ValueError, match=r"There is no archive .*a\.zip"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert _listing(tmp_path) == []
    path = _zip(tmp_path / "a.zip", ("file", b"x"))
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"is a file\. Move it away"):
        extract(path, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be unpacked into"):
        extract(path, tmp_path / "out" / "below")
    with pytest.raises(ValueError, match=r"cannot be unpacked into .*Is a directory"):
        extract(tmp_path, tmp_path / "new")


def test_full_disk_leaves_no_files(archive, tmp_path, monkeypatch):
    written = []
    original = module._Extraction._write

    def fill(self, path, member):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        original(self, path, member)

    monkeypatch.setattr(module._Extraction, "_write", fill)
    assert "became full" in _refusal(archive)
    assert len(written) == 1


def test_data_filter_of_tarfile_is_applied(tmp_path, monkeypatch):
    path = _tar(tmp_path / "a.tgz", ("../evil", b"evil"))
    monkeypatch.setattr(module, "_member_path", lambda name: name)
    assert "outside the destination" in _refusal(path)


def test_concurrent_processes_unpack_once(archive, tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=extract, args=(archive, tmp_path / "out"), daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert _tree(tmp_path / "out") == FILES
    assert _listing(tmp_path) == sorted([archive.name, "out"])


def test_waiting_process_uses_the_unpacked_folder(tmp_path, monkeypatch):
    path = _tar(tmp_path / "a.tgz", *FILES.items())

    @contextlib.contextmanager
    def locked_after_other_process(folder):
        folder.mkdir()
        (folder / "file").write_bytes(b"of the other process")
        yield

    monkeypatch.setattr(module, "locked", locked_after_other_process)
    assert _tree(extract(path, tmp_path / "out")) == {"file": b"of the other process"}


def test_killed_process_leaves_no_folder(tmp_path, monkeypatch):
    path = _tar(tmp_path / "a.tgz", *FILES.items())
    with monkeypatch.context() as patch:
        patch.setattr(module._Extraction, "finish", lambda _: threading.Event().wait(30))
        process = multiprocessing.get_context("fork").Process(
            target=extract, args=(path, tmp_path / "out"), daemon=True
        )
        process.start()
    last = tmp_path / "out.part" / list(FILES)[-1]
    for _ in range(600):
        if last.exists():
            break
        threading.Event().wait(0.05)
    process.kill()
    process.join(30)
    assert last.exists()
    assert not (tmp_path / "out").exists()
    assert _tree(extract(path, tmp_path / "out")) == FILES
    assert _listing(tmp_path) == ["a.tgz", "out"]
