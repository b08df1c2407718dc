"""CIFAR: fabricated binary versions, loose and archived."""

import dataclasses
import hashlib
import io
import tarfile

import numpy as np
import pytest

from sharpflat.data import cifar, load
from sharpflat.validation import InputError

COUNTS = {
    "cifar10": ({f"data_batch_{number}.bin": 4 for number in range(1, 6)}, {"test_batch.bin": 10}),
    "cifar100": ({"train.bin": 200}, {"test.bin": 100}),
}


@dataclasses.dataclass
class Small:
    name: str
    root: object
    planes: dict  # file: [n, 3, 32, 32]
    labels: dict
    contents: dict

    @property
    def binary(self):
        return cifar.BINARIES[self.name]

    def load(self):
        return load(self.name, {"data_dir": str(self.root)})

    def loose(self, inner=""):
        folder = self.root / self.name / inner
        folder.mkdir(parents=True)
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        return folder

    def archive(self, names=None):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name in names or self.contents:
                member = tarfile.TarInfo(f"{self.binary.folder}/{name}")
                member.size = len(self.contents[name])
                archive.addfile(member, io.BytesIO(self.contents[name]))
        path = self.root / self.name / self.binary.archive.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        return path


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, tmp_path, monkeypatch):
    name = request.param
    train, test = COUNTS[name]
    binary = dataclasses.replace(cifar.BINARIES[name], train=train, test=test)
    generator = np.random.default_rng(0)
    planes, labels, contents = {}, {}, {}
    for split in (train, test):
        drawn = generator.permutation(np.arange(sum(split.values())) % binary.classes)
        for file, count in split.items():
            labels[file], drawn = drawn[:count], drawn[count:]
            planes[file] = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
            coarse = np.full((count, binary.label_bytes - 1), 3)  # not the class that is asked for
            record = [coarse, labels[file][:, None], planes[file].reshape(count, -1)]
            contents[file] = np.concatenate(record, axis=1).astype(np.uint8).tobytes()
    monkeypatch.setitem(cifar.BINARIES, name, binary)
    return Small(name, tmp_path, planes, labels, contents)


def pin(small, monkeypatch, path):
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    archive = dataclasses.replace(small.binary.archive, md5=digest)
    binary = dataclasses.replace(small.binary, archive=archive)
    monkeypatch.setitem(cifar.BINARIES, small.name, binary)


def check(small):
    data = small.load()
    for batch, counts in ((data.train, small.binary.train), (data.test, small.binary.test)):
        planes = np.concatenate([small.planes[name] for name in counts])
        labels = np.concatenate([small.labels[name] for name in counts])
        assert batch.inputs.shape == (len(labels), 32, 32, 3)
        for channel in range(3):
            expected = planes[:, channel] / np.float32(255)
            np.testing.assert_array_equal(batch.inputs[..., channel], expected)
        np.testing.assert_array_equal(batch.labels, labels)
    assert data.classes == small.binary.classes


def test_loose_files(small):
    small.loose()
    check(small)


def test_loose_files_in_the_folder_of_the_archive(small):
    small.loose(small.binary.folder)
    check(small)


def test_archive(small, monkeypatch):
    pin(small, monkeypatch, small.archive())
    check(small)


def test_archive_with_another_digest_is_refused(small):
    path = small.archive()
    small.loose(small.binary.folder)  # a damaged archive is not passed over in silence
    with pytest.raises(InputError) as error:
        small.load()
    assert f"{small.name}: {path}: expected MD5 {small.binary.archive.md5}" in str(error.value)


def test_archive_without_a_member_is_refused(small, monkeypatch):
    names = list(small.contents)
    path = small.archive(names[:-1])
    pin(small, monkeypatch, path)
    with pytest.raises(InputError, match=rf"{small.binary.archive.name}: .*{names[-1]}"):
        small.load()


def test_truncated_file_is_named(small):
    folder = small.loose()
    name = next(iter(small.contents))
    (folder / name).write_bytes(small.contents[name][:-1])
    size = len(small.contents[name])
    with pytest.raises(InputError) as error:
        small.load()
    assert str(error.value).startswith(f"{small.name}: {folder}: {name}: expected ")
    assert f"({size} in all), got {size - 1} bytes" in str(error.value)


@pytest.mark.parametrize("outside", [True, False])
def test_altered_label_is_noticed(small, outside):
    folder = small.loose()
    name = next(iter(small.contents))
    content = bytearray(small.contents[name])
    where = small.binary.label_bytes - 1
    content[where] = 200 if outside else (content[where] + 1) % small.binary.classes
    (folder / name).write_bytes(bytes(content))
    message = r"expected labels 0\.\..*got 200" if outside else "examples of every class, got "
    with pytest.raises(InputError, match=message):
        small.load()


def test_missing_files_say_where_they_belong(small):
    with pytest.raises(InputError) as error:
        small.load()
    for part in (small.name, small.binary.archive.name, "SHARPFLAT_DATA", "data_dir"):
        assert part in str(error.value)
    assert str(small.root / small.name) in str(error.value)


def test_published_layout():
    for binary in cifar.BINARIES.values():
        assert sum(binary.train.values()) == 50_000
        assert sum(binary.test.values()) == 10_000
