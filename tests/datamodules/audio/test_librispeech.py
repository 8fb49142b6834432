"""LibriSpeech in folders and from a local server: layouts, order, counts and error messages."""

import hashlib
import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml
from program import REPOSITORY
from server import serving, unused_port

from datamodules import LibriSpeech
from datamodules.domain import Grid
from datamodules.storage.download import Source, download
from tools.check.__main__ import main as check

TRAIN, TEST = "train-clean-100", "test-clean"
# Samples of each utterance; ids sorted as text differ from ids sorted as numbers.
IDS = {
    TRAIN: {"103-1240-0000": 20560, "103-1240-0001": 16000, "1034-121119-0010": 40000, "87-9-0002": 12000},
    TEST: {"1089-134686-0000": 30000, "121-121726-0000": 10000, "908-31957-0003": 17000},
}
LAYOUTS = (
    "librispeech/{}/LibriSpeech",
    "librispeech/LibriSpeech",
    "librispeech",
    "LibriSpeech",
    "LibriSpeech/original/LibriSpeech",
    ".",
)


def _flac(name, samples):
    """Return the FLAC file of an utterance, of noise that depends on its name."""
    content = io.BytesIO()
    random = np.random.default_rng(int(name.replace("-", "")))
    soundfile.write(content, 0.1 * random.standard_normal(samples), 16000, format="FLAC", subtype="PCM_16")
    return content.getvalue()


FILES = {
    subset: {
        f"{subset}/{name.split('-')[0]}/{name.split('-')[1]}/{name}.flac": _flac(name, samples)
        for name, samples in lengths.items()
    }
    for subset, lengths in IDS.items()
}


def _archive(subset):
    """Return the archive of a subset as published, including files that are not utterances."""
    content = io.BytesIO()
    other_files = {"README.TXT": b"about", f"{subset}/103/1240/103-1240.trans.txt": b"103-1240-0000 CHAPTER ONE"}
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in [*other_files.items(), *FILES[subset].items()]:
            info = tarfile.TarInfo(f"LibriSpeech/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


ARCHIVES = {subset: _archive(subset) for subset in IDS}


def _write(layout, *subsets):
    """Write the utterances of subsets into folders."""
    for subset in subsets or IDS:
        for name, data in FILES[subset].items():
            path = Path("data", layout.format(subset), name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _sources(root):
    """Return the sources of the archives on a server."""
    return {
        subset: Source(
            f"{root}/{subset}.tar.gz", f"{subset}.tar.gz", f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)
        )
        for subset, content in ARCHIVES.items()
    }


@pytest.fixture(autouse=True)
def _miniature(tmp_path, monkeypatch):
    """Replace LibriSpeech by a few utterances, in an empty folder, without network access and pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(download.__kwdefaults__, "pause", lambda seconds: None)
    monkeypatch.setattr(LibriSpeech, "published", {subset: len(names) for subset, names in IDS.items()})
    monkeypatch.setattr(LibriSpeech, "sources", LibriSpeech.sources | _sources(f"http://127.0.0.1:{unused_port()}"))


@pytest.fixture
def site(monkeypatch):
    """Return a server of the archives."""
    with serving() as site:
        for subset, content in ARCHIVES.items():
            site.put(f"/{subset}.tar.gz", content)
        monkeypatch.setattr(LibriSpeech, "sources", LibriSpeech.sources | _sources(site.root))
        yield site


def _ready(stage="fit", **arguments):
    """Return the data module, set up as by the trainer."""
    data = LibriSpeech(**{"batch_size": 2} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def _names(data, split):
    return [name for name, _ in data.files(split)]


def _error(kind=ValueError, **arguments):
    """Return the error message of the set-up."""
    with pytest.raises(kind) as caught:
        _ready(**arguments)
    return str(caught.value)


def test_counts_and_sources_are_as_published(monkeypatch):
    monkeypatch.undo()
    data = LibriSpeech()
    assert [data.count(split) for split in ("train", "val", "test")] == [28539, 2620, 2620]
    assert LibriSpeech(train_subset="dev-other").count("train") is None
    assert data.signal_shape == (1, 16000)
    assert data.spec.domain == Grid.unit(1)
    assert LibriSpeech(seconds=3).spec.domain == Grid(((-3, 3),))
    names = [f"{kind}-{quality}" for kind in ("dev", "test") for quality in ("clean", "other")]
    assert set(data.sources) == {*names, "train-clean-100", "train-clean-360", "train-other-500"}
    for subset, source in data.sources.items():
        assert source.url == f"https://www.openslr.org/resources/12/{subset}.tar.gz"
        assert source.filename == f"{subset}.tar.gz"
        assert len(source.checksum) == len("sha256:") + 64
    assert len({source.checksum for source in data.sources.values()}) == 7
    assert data.sources[TRAIN].checksum.endswith("d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2")
    assert data.sources[TEST].checksum.endswith("39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23")
    assert data.sources[TEST].size == 346663984


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_and_sorted_by_id(layout):
    _write(layout)
    data = _ready()
    assert _names(data, "train") == sorted(IDS[TRAIN])
    assert _names(data, "val") == _names(data, "test") == sorted(IDS[TEST])
    assert len(data.train_set) == 4
    assert [data.val_set[index].name for index in range(3)] == sorted(IDS[TEST])
    for name, path in data.files("train"):
        assert path.read_bytes() == FILES[TRAIN][f"{TRAIN}/{name.split('-')[0]}/{name.split('-')[1]}/{name}.flac"]
        assert Path("data", layout.format(TRAIN), TRAIN) in path.parents


def test_other_files_are_ignored():
    _write("LibriSpeech")
    Path("data/LibriSpeech/test-clean/908/31957/._908-31957-0003.flac").write_bytes(b"")
    Path("data/LibriSpeech/test-clean/908/31957/908-31957.trans.txt").write_text("908-31957-0003 WORDS")
    Path("data/librispeech/test-clean/notes").mkdir(parents=True)
    assert _names(_ready("test"), "test") == sorted(IDS[TEST])


def test_evaluation_takes_first_second_and_masks_padding():
    _write("LibriSpeech")
    data = _ready("test", eval_batch_size=3)
    batch = data.to_coordinates(next(iter(data.test_dataloader())))
    assert batch.query.values.shape == (3, 16000, 1)
    assert batch.query.mask.sum(1).tolist() == [16000, 10000, 16000]
    for row, (_, path) in enumerate(data.files("test")):
        recording = soundfile.read(path, dtype="float32")[0][:16000]
        assert np.array_equal(batch.query.values[row, : len(recording), 0].numpy(), recording)
        assert not batch.query.values[row, len(recording) :].any()


def test_released_cropping():
    _write("LibriSpeech")
    data = _ready("test", cropping="released")
    actual = [int((data.test_set[index].values != 0).sum()) for index in range(3)]
    available = [max(0, IDS[TEST][name] - 16000) for name in sorted(IDS[TEST])]
    assert available == [14000, 0, 1000]
    assert all(0.99 * samples <= nonzero <= samples for nonzero, samples in zip(actual, available, strict=True))
    assert [data.test_set[index].length for index in range(3)] == [-1, -1, -1]


def test_archives_are_downloaded_once_and_extracted(site):
    data = _ready()
    assert len(data.train_set) == 4
    assert sorted(path for path, *_ in site.requests) == [f"/{TEST}.tar.gz", f"/{TRAIN}.tar.gz"]
    assert Path(f"data/librispeech/{TEST}/LibriSpeech/{TEST}/908/31957/908-31957-0003.flac").is_file()
    for name in ARCHIVES:
        Path(f"data/{name}.tar.gz").unlink()
    _ready()
    assert len(site.requests) == 2


def test_only_the_subsets_of_the_stage_are_downloaded(site):
    data = LibriSpeech()
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="test"))
    data.prepare_data()
    assert [path for path, *_ in site.requests] == [f"/{TEST}.tar.gz"]


def test_interrupted_download_is_resumed(site):
    site.pages[f"/{TRAIN}.tar.gz"].cuts = [1000]
    assert len(_ready().train_set) == 4
    assert "bytes=1000-" in site.ranges


def test_archive_with_wrong_checksum_raises(site):
    content = ARCHIVES[TRAIN]
    site.pages[f"/{TRAIN}.tar.gz"].body = content[:-1] + bytes([content[-1] ^ 1])
    message = _error()
    for text in (LibriSpeech.sources[TRAIN].checksum, f"data/{TRAIN}.tar.gz"):
        assert text in message
    assert list(Path("data").iterdir()) == []


def test_existing_archive_is_extracted_without_download(site):
    Path("data").mkdir()
    for subset, content in ARCHIVES.items():
        Path(f"data/{subset}.tar.gz").write_bytes(content)
    assert len(_ready(download=False).train_set) == 4
    assert site.requests == []


def test_error_without_network_describes_manual_download():
    message = _error(ConnectionError)
    for text in ("cannot be reached", LibriSpeech.sources[TRAIN].url, f"as data/{TRAIN}.tar.gz"):
        assert text in message


def test_error_without_download_lists_folders_and_fix():
    message = _error(download=False)
    folders = ", ".join(str(Path("data", layout.format(TRAIN), TRAIN)) for layout in LAYOUTS)
    source = LibriSpeech.sources[TRAIN]
    for text in (f"none of {folders} holds", "download true", source.url, source.checksum, f"data/{TRAIN}.tar.gz"):
        assert text in message


def test_missing_utterances_raise_unless_partial():
    _write("LibriSpeech")
    Path("data/LibriSpeech", next(iter(FILES[TRAIN]))).unlink()
    message = _error()
    for text in (
        "3 recordings of the split train",
        "but 4 were published",
        f"move data/LibriSpeech/{TRAIN} away",
        "partial true",
    ):
        assert text in message
    assert len(_ready(partial=True).train_set) == 3


def test_subsets_are_selected_by_name():
    _write("LibriSpeech")
    data = _ready(train_subset=TEST, val_subset=TRAIN, test_subset=TRAIN)
    assert _names(data, "train") == sorted(IDS[TEST])
    assert _names(data, "val") == sorted(IDS[TRAIN])
    with pytest.raises(ValueError, match="no subset train-clean: choose one of train-clean-100, "):
        LibriSpeech(train_subset="train-clean")


def test_check_counts_utterances(capsys):
    _write("LibriSpeech")
    check(["--config", str(REPOSITORY / "configs" / "data" / "librispeech.yaml")])
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if line.startswith(("train", "val"))] == [
        ["train", "4", "4", "0", "0", "0", "1", "0"],
        ["val,", "test", "3", "3", "0", "0", "0", "1", "0"],
    ]
    Path("data/LibriSpeech", next(iter(FILES[TEST]))).unlink()
    with pytest.raises(SystemExit) as ended:
        check(["--config", str(REPOSITORY / "configs" / "data" / "librispeech.yaml")])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "Missing: 1" in printed
    assert "partial true" in printed


def test_config_is_the_published_protocol():
    config = yaml.safe_load((REPOSITORY / "configs" / "data" / "librispeech.yaml").read_text())["data"]
    data = LibriSpeech(**config["init_args"])
    assert data.subsets == {"train": TRAIN, "val": TEST, "test": TEST}
    assert data.signal_shape == (1, 16000)
    assert not data.reader.released
