"""LibriSpeech in folders and from a server of this machine: every layout, the order, the counts, and what is refused."""

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
# Samples of each utterance; the order of the ids as text is not that of their numbers.
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
    """Return an utterance that is not like another."""
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
    """Return the archive of a subset as published, with the files beside the utterances."""
    content = io.BytesIO()
    others = {"README.TXT": b"about", f"{subset}/103/1240/103-1240.trans.txt": b"103-1240-0000 CHAPTER ONE"}
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in [*others.items(), *FILES[subset].items()]:
            info = tarfile.TarInfo(f"LibriSpeech/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


ARCHIVES = {subset: _archive(subset) for subset in IDS}


def _put(layout, *subsets):
    """Write utterances into folders."""
    for subset in subsets or IDS:
        for name, data in FILES[subset].items():
            path = Path("data", layout.format(subset), name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _sources(root):
    """Return where a server has the archives."""
    return {
        subset: Source(
            f"{root}/{subset}.tar.gz", f"{subset}.tar.gz", f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)
        )
        for subset, content in ARCHIVES.items()
    }


@pytest.fixture(autouse=True)
def _miniature(tmp_path, monkeypatch):
    """Let few utterances be all of LibriSpeech, in an empty folder and without network or pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(download.__kwdefaults__, "pause", lambda seconds: None)
    monkeypatch.setattr(LibriSpeech, "published", {subset: len(names) for subset, names in IDS.items()})
    monkeypatch.setattr(LibriSpeech, "sources", LibriSpeech.sources | _sources(f"http://127.0.0.1:{unused_port()}"))


@pytest.fixture
def site(monkeypatch):
    """Return a server that has the archives."""
    with serving() as site:
        for subset, content in ARCHIVES.items():
            site.put(f"/{subset}.tar.gz", content)
        monkeypatch.setattr(LibriSpeech, "sources", LibriSpeech.sources | _sources(site.root))
        yield site


def _ready(stage="fit", **arguments):
    """Return the data set after what the trainer calls."""
    data = LibriSpeech(**{"batch_size": 2} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def _names(data, split):
    return [name for name, _ in data.files(split)]


def _refusal(kind=ValueError, **arguments):
    """Return why the data set cannot be made ready."""
    with pytest.raises(kind) as caught:
        _ready(**arguments)
    return str(caught.value)


def test_it_is_what_was_published(monkeypatch):
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
def test_every_layout_is_found_in_the_order_of_the_ids(layout):
    _put(layout)
    data = _ready()
    assert _names(data, "train") == sorted(IDS[TRAIN])
    assert _names(data, "val") == _names(data, "test") == sorted(IDS[TEST])
    assert len(data.train_set) == 4
    assert [data.val_set[index].name for index in range(3)] == sorted(IDS[TEST])
    for name, path in data.files("train"):
        assert path.read_bytes() == FILES[TRAIN][f"{TRAIN}/{name.split('-')[0]}/{name.split('-')[1]}/{name}.flac"]
        assert Path("data", layout.format(TRAIN), TRAIN) in path.parents


def test_what_is_no_utterance_is_passed_over():
    _put("LibriSpeech")
    Path("data/LibriSpeech/test-clean/908/31957/._908-31957-0003.flac").write_bytes(b"")
    Path("data/LibriSpeech/test-clean/908/31957/908-31957.trans.txt").write_text("908-31957-0003 WORDS")
    Path("data/librispeech/test-clean/notes").mkdir(parents=True)
    assert _names(_ready("test"), "test") == sorted(IDS[TEST])


def test_items_are_the_first_seconds_and_masked_after_their_end():
    _put("LibriSpeech")
    data = _ready("test", eval_batch_size=3)
    batch = data.to_coordinates(next(iter(data.test_dataloader())))
    assert batch.query.values.shape == (3, 16000, 1)
    assert batch.query.mask.sum(1).tolist() == [16000, 10000, 16000]
    for row, (_, path) in enumerate(data.files("test")):
        recording = soundfile.read(path, dtype="float32")[0][:16000]
        assert np.array_equal(batch.query.values[row, : len(recording), 0].numpy(), recording)
        assert not batch.query.values[row, len(recording) :].any()


def test_released_cropping_is_an_option():
    _put("LibriSpeech")
    data = _ready("test", cropping="released")
    measured = [int((data.test_set[index].values != 0).sum()) for index in range(3)]
    left = [max(0, IDS[TEST][name] - 16000) for name in sorted(IDS[TEST])]
    assert left == [14000, 0, 1000]
    assert all(0.99 * wanted <= found <= wanted for found, wanted in zip(measured, left, strict=True))
    assert [data.test_set[index].length for index in range(3)] == [-1, -1, -1]


def test_it_is_downloaded_once_and_unpacked(site):
    data = _ready()
    assert len(data.train_set) == 4
    assert sorted(path for path, *_ in site.requests) == [f"/{TEST}.tar.gz", f"/{TRAIN}.tar.gz"]
    assert Path(f"data/librispeech/{TEST}/LibriSpeech/{TEST}/908/31957/908-31957-0003.flac").is_file()
    for name in ARCHIVES:
        Path(f"data/{name}.tar.gz").unlink()
    _ready()
    assert len(site.requests) == 2


def test_only_what_a_stage_reads_is_downloaded(site):
    data = LibriSpeech()
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="test"))
    data.prepare_data()
    assert [path for path, *_ in site.requests] == [f"/{TEST}.tar.gz"]


def test_a_download_that_breaks_off_goes_on(site):
    site.pages[f"/{TRAIN}.tar.gz"].cuts = [1000]
    assert len(_ready().train_set) == 4
    assert "bytes=1000-" in site.ranges


def test_an_archive_of_another_content_is_refused(site):
    content = ARCHIVES[TRAIN]
    site.pages[f"/{TRAIN}.tar.gz"].body = content[:-1] + bytes([content[-1] ^ 1])
    message = _refusal()
    for told in (LibriSpeech.sources[TRAIN].checksum, f"data/{TRAIN}.tar.gz"):
        assert told in message
    assert list(Path("data").iterdir()) == []


def test_an_archive_that_was_put_there_is_unpacked_without_a_download(site):
    Path("data").mkdir()
    for subset, content in ARCHIVES.items():
        Path(f"data/{subset}.tar.gz").write_bytes(content)
    assert len(_ready(download=False).train_set) == 4
    assert site.requests == []


def test_without_network_it_says_what_to_fetch_by_hand():
    message = _refusal(ConnectionError)
    for told in ("cannot be reached", LibriSpeech.sources[TRAIN].url, f"as data/{TRAIN}.tar.gz"):
        assert told in message


def test_without_a_download_it_says_where_it_looked_and_the_way_out():
    message = _refusal(download=False)
    places = ", ".join(str(Path("data", layout.format(TRAIN), TRAIN)) for layout in LAYOUTS)
    source = LibriSpeech.sources[TRAIN]
    for told in (f"none of {places} has", "download true", source.url, source.checksum, f"data/{TRAIN}.tar.gz"):
        assert told in message


def test_missing_utterances_are_refused_unless_that_is_wanted():
    _put("LibriSpeech")
    Path("data/LibriSpeech", next(iter(FILES[TRAIN]))).unlink()
    message = _refusal()
    for told in (
        "3 recordings of the split train",
        "published are 4",
        f"move data/LibriSpeech/{TRAIN} away",
        "partial true",
    ):
        assert told in message
    assert len(_ready(partial=True).train_set) == 3


def test_subsets_are_chosen_by_name():
    _put("LibriSpeech")
    data = _ready(train_subset=TEST, val_subset=TRAIN, test_subset=TRAIN)
    assert _names(data, "train") == sorted(IDS[TEST])
    assert _names(data, "val") == sorted(IDS[TRAIN])
    with pytest.raises(ValueError, match="no subset train-clean: choose of train-clean-100, "):
        LibriSpeech(train_subset="train-clean")


def test_the_check_counts_it(capsys):
    _put("LibriSpeech")
    check(["--config", str(REPOSITORY / "configs" / "data" / "librispeech.yaml")])
    told = capsys.readouterr().out
    assert [line.split() for line in told.splitlines() if line.startswith(("train", "val"))] == [
        ["train", "4", "4", "0", "0", "0", "1", "0"],
        ["val,", "test", "3", "3", "0", "0", "0", "1", "0"],
    ]
    Path("data/LibriSpeech", next(iter(FILES[TEST]))).unlink()
    with pytest.raises(SystemExit) as ended:
        check(["--config", str(REPOSITORY / "configs" / "data" / "librispeech.yaml")])
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert "Missing: 1" in told
    assert "partial true" in told


def test_its_config_is_the_published_protocol():
    config = yaml.safe_load((REPOSITORY / "configs" / "data" / "librispeech.yaml").read_text())["data"]
    data = LibriSpeech(**config["init_args"])
    assert data.subsets == {"train": TRAIN, "val": TEST, "test": TEST}
    assert data.signal_shape == (1, 16000)
    assert not data.excerpt.released
