"""The store's behaviour on a healthy disk: what goes in comes out, what must not go in is refused."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint_lab.fake_disk import FakeDisk
from wafergpt.checkpoints.files import OSFiles, sync_directory
from wafergpt.checkpoints.native import Checkpoint, CheckpointStore, load_checkpoint
from wafergpt.errors import CheckpointError, ConfigError, NonFiniteError, StorageError

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def save(store: CheckpointStore, step: int, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "tensors": {
            "model": {"wte.weight": WEIGHT + step},
            "optimizer": {"exp_avg.wte.weight": WEIGHT * step},
        },
        "documents": {"config.json": {"d_model": 3, "lr": 6e-3}, "state.json": {"step": step}},
        "blobs": {"tokenizer.json": b'{"model": "bpe"}'},
    }
    return store.save(step, **(content | changes))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" / "checkpoints", keep=2)


def test_what_goes_in_comes_out(store: CheckpointStore) -> None:
    path = save(store, 7)
    assert path == store.root / "step-00000007"
    checkpoint = store.load_newest()
    assert (checkpoint.step, checkpoint.path, checkpoint.skipped) == (7, path, ())
    assert checkpoint.documents == {"config.json": {"d_model": 3, "lr": 6e-3}, "state.json": {"step": 7}}
    assert checkpoint.blobs == {"tokenizer.json": b'{"model": "bpe"}'}
    np.testing.assert_array_equal(checkpoint.tensors["model"]["wte.weight"], WEIGHT + 7)
    assert checkpoint.tensors["optimizer"]["exp_avg.wte.weight"].flags.writeable


def test_documents_keep_their_order_and_exact_numbers(store: CheckpointStore) -> None:
    document = {"z": 1, "a": [0.1, 1e-300, -0.0, 2**127 + 1, True, None, "\ud800 é \n"], "": {}}
    save(store, 1, documents={"state.json": document})
    loaded = store.load_newest().documents["state.json"]
    assert repr(loaded) == repr(document)


def test_groups_limit_memory_not_verification(store: CheckpointStore) -> None:
    path = save(store, 1)
    assert set(store.load_newest(groups=["model"]).tensors) == {"model"}
    with pytest.raises(CheckpointError, match="no tensors named ema"):
        store.load(path, groups=["model", "ema"])
    optimizer = path / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors does not match its SHA-256"):
        store.load(path, groups=["model"])


def test_large_files_are_verified_in_pieces(store: CheckpointStore) -> None:
    """Longer than one chunk of 4 MiB, with a damaged last byte."""
    path = save(store, 1, tensors={"model": {"w": np.zeros(1_300_000, np.float32)}})
    store.verify(path)
    with open(path / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(CheckpointError):
        store.verify(path)


def test_the_newest_are_kept(store: CheckpointStore) -> None:
    for step in (1, 5, 9, 12):
        save(store, step)
    assert [path.name for path in store.paths()] == ["step-00000012", "step-00000009"]
    assert {path.name for path in store.root.iterdir()} == {"step-00000012", "step-00000009", ".save.lock"}


def test_a_step_saved_again_never_overwrites(store: CheckpointStore) -> None:
    first = save(store, 3)
    second = save(store, 3, documents={"state.json": {"again": True}})
    assert second.name == "step-00000003.1"
    assert store.load_newest().documents == {"state.json": {"again": True}}
    assert not first.exists()  # removed once its successor was verified


def test_a_damaged_checkpoint_does_not_count_and_ages_out(store: CheckpointStore) -> None:
    for step in (1, 2):
        save(store, step)
    (store.root / "step-00000002" / "model.safetensors").write_bytes(b"damaged")
    again = CheckpointStore(store.root, keep=2)
    assert again.load_newest().step == 1
    save(again, 2)
    assert [path.name for path in again.paths()] == ["step-00000002.1", "step-00000001"]


def test_a_save_behind_the_newest_is_not_removed_by_itself(store: CheckpointStore) -> None:
    for step in (8, 9, 3):
        path = save(store, step)
    assert path in store.paths() and store.load_newest().step == 9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_non_finite_is_saved(store: CheckpointStore, bad: float) -> None:
    weight = WEIGHT.copy()
    weight[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"model tensor 'wte\.weight' holds nan or infinity"):
        save(store, 1, tensors={"model": {"wte.weight": weight}})
    with pytest.raises(NonFiniteError, match=r"state\.json holds nan or infinity"):
        save(store, 1, documents={"state.json": {"loss": bad}})
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"step": -1}, ValueError),
        ({"step": 10**15}, ValueError),
        ({"step": True}, ValueError),
        ({"documents": {"state.json": {1: "key"}}}, TypeError),
        ({"documents": {"state.json": {"losses": (1, 2)}}}, TypeError),
        ({"documents": {"state.json": {"x": [np.float32(1)]}}}, TypeError),
        ({"documents": {"state.txt": {}}}, ValueError),
        ({"documents": {"manifest.json": {}}}, ValueError),
        ({"documents": {"Manifest.JSON": {}}}, ValueError),
        ({"documents": {"a.json": {}, "A.json": {}}}, ValueError),
        ({"documents": {"tokenizer.json": {}}}, ValueError),
        ({"blobs": {"../x": b""}}, ValueError),
        ({"blobs": {"a/b": b""}}, ValueError),
        ({"blobs": {".hidden": b""}}, ValueError),
        ({"blobs": {"x.safetensors": b""}}, ValueError),
        ({"tensors": {"model": {"w": [1.0]}}}, TypeError),
        ({"tensors": {"model": {"w": np.array(["text"])}}}, TypeError),
        ({"tensors": {"model": {"__metadata__": WEIGHT}}}, TypeError),
    ],
)
def test_what_would_not_come_back_is_refused(
    store: CheckpointStore, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        save(store, changes.pop("step", 1), **changes)
    assert not store.root.exists()


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep = 0"):
        CheckpointStore(tmp_path, keep=0)


def test_messages_when_there_is_nothing_to_load(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        store.load_newest()
    path = save(store, 4)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"can be loaded: step-00000004: state\.json is missing"):
        store.load_newest()


def test_other_names_are_not_checkpoints(store: CheckpointStore) -> None:
    save(store, 1)
    for name in ("step-2", "step-000000009", "step-00000009.0", "step-00000009.bak", "notes"):
        (store.root / name).mkdir()
    assert [path.name for path in store.paths()] == ["step-00000001"]


def test_a_checkpoint_under_the_name_of_another_step_is_refused(store: CheckpointStore) -> None:
    path = save(store, 1)
    path.rename(store.root / "step-00000002")
    with pytest.raises(CheckpointError, match="is that of step 1"):
        store.load_newest()


def test_shortage_of_handles_is_not_mistaken_for_damage(store: CheckpointStore) -> None:
    class Exhausted(OSFiles):
        def open_read(self, directory: int, name: str) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    save(store, 1)
    with pytest.raises(StorageError, match="Too many open files"):
        CheckpointStore(store.root, files=Exhausted()).load_newest()


def test_a_reader_looks_again_when_its_checkpoint_is_removed_meanwhile(store: CheckpointStore) -> None:
    class Overtaken(OSFiles):
        """The writer saves and cleans up while the manifest has just been opened."""

        def open_read(self, directory: int, name: str) -> int:
            if name == "model.safetensors" and not (store.root / "step-00000005").exists():
                save(store, 4)
                save(store, 5)
            return super().open_read(directory, name)

    save(store, 1)
    checkpoint = CheckpointStore(store.root, files=Overtaken()).load_newest()
    assert (checkpoint.step, checkpoint.skipped) == (5, ())


def test_a_reader_does_not_look_again_for_ever(store: CheckpointStore) -> None:
    class NeverThere(CheckpointStore):
        n_listed = 0

        def paths(self) -> list[Path]:
            self.n_listed += 1
            return [self.root / f"step-{self.n_listed:08d}"]

    with pytest.raises(CheckpointError, match="vanish faster than they can be read"):
        NeverThere(store.root).load_newest()


def test_an_interrupted_save_leaves_no_litter(store: CheckpointStore) -> None:
    class Interrupted(OSFiles):
        def write(self, handle: int, data: memoryview) -> int:
            raise KeyboardInterrupt

    save(store, 1)
    with pytest.raises(KeyboardInterrupt):
        save(CheckpointStore(store.root, files=Interrupted()), 2)
    assert {path.name for path in store.root.iterdir()} == {"step-00000001", ".save.lock"}


def test_a_device_that_takes_nothing_is_an_error_not_a_loop(store: CheckpointStore) -> None:
    class TakesNothing(OSFiles):
        def write(self, handle: int, data: memoryview) -> int:
            return 0

    with pytest.raises(StorageError, match="the system wrote nothing"):
        save(CheckpointStore(store.root, files=TakesNothing()), 1)


def test_a_file_that_shrinks_while_it_is_read_is_damage(store: CheckpointStore) -> None:
    class Shrinks(OSFiles):
        def read_into(self, handle: int, buffer: memoryview) -> int:
            return 0

    save(store, 1)
    with pytest.raises(CheckpointError, match="the file ended early"):
        CheckpointStore(store.root, files=Shrinks()).load_newest()


def test_an_oversized_manifest_is_not_read(store: CheckpointStore) -> None:
    os.truncate(save(store, 1) / "manifest.json", 2**40)
    with pytest.raises(CheckpointError, match=r"manifest\.json has 1024\.0 GiB, too many"):
        store.load_newest()


def test_a_run_folder_someone_else_made_survives_a_power_cut_too() -> None:
    """`mkdir` without fsync of the parent, as every program does it, must not take the checkpoint with it."""
    disk, root, rng = FakeDisk(), Path("/fake/run/checkpoints"), random.Random(1)
    disk.mkdir(Path("/fake"))
    sync_directory(disk, Path("/"))
    disk.mkdir(Path("/fake/run"))
    disk.mkdir(root)
    save(CheckpointStore(root, files=disk), 1)
    for _ in range(50):
        assert CheckpointStore(root, files=disk.after_crash(rng)).load_newest().step == 1


@pytest.mark.parametrize("step", [0, 10**15 - 1])
def test_the_first_and_the_last_step_can_be_saved(store: CheckpointStore, step: int) -> None:
    assert store.load(save(store, step)).step == store.load_newest().step == step


def test_root_may_be_reached_through_a_link(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, 1)
    (tmp_path / "link").symlink_to(store.root)
    assert CheckpointStore(tmp_path / "link").load_newest().step == 1
    assert save(CheckpointStore(tmp_path / "link"), 2) == store.root / "step-00000002"


def test_root_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        save(CheckpointStore(tmp_path / "file"), 1)
    with pytest.raises(CheckpointError):
        CheckpointStore(tmp_path / "file").load_newest()


def test_load_checkpoint_takes_a_run_a_store_or_one_checkpoint(
    store: CheckpointStore, tmp_path: Path
) -> None:
    first = save(store, 1)
    save(store, 2)
    elsewhere = tmp_path / "my model"
    os.rename(first, elsewhere)

    def load(path: Path) -> Checkpoint:
        return load_checkpoint(path, groups=["model"])

    assert (
        load(store.root.parent).step == load(store.root).step == load(store.root / "step-00000002").step == 2
    )
    assert load(elsewhere).step == 1
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load(tmp_path)


def test_leftovers_of_a_dead_writer_are_swept(store: CheckpointStore) -> None:
    save(store, 1)
    for name in (".tmp-step-00000002-123-abc", ".trash-step-00000000-abc"):
        (store.root / name / "deep").mkdir(parents=True)
        (store.root / name / "deep" / "file").write_text("x")
        (store.root / name / "link").symlink_to(store.root / "step-00000001")
    save(store, 2)
    assert {path.name for path in store.root.iterdir()} == {"step-00000001", "step-00000002", ".save.lock"}
    assert store.load(store.root / "step-00000001").step == 1  # the link was removed, not what it led to
