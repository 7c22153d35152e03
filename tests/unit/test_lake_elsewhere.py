"""A lake whose tables are not on this machine's disk: a subclass of `LakeFiles` is all that it takes."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from rass_core.errors import LakeError
from rass_core.lake import store
from rass_core.lake.files import LakeFiles
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Lake

ADDRESS = "s3://lake"
RESPONSE = {
    "response_id": "r", "prompt_id": "p", "model_id": "m", "variant": "base", "sample": 0, "attack": None, "text": "a",
    "text_sha256": "0", "finish_reason": "stop", "n_tokens": 1,
}  # fmt: skip
ROWS = rows_table("responses", [RESPONSE])


class DuckBucket(ArrowFSWrapper):  # type: ignore[misc]
    protocol = "s3"
    cachable = False


class BucketFiles(LakeFiles):
    """Files that are read and written through pyarrow's file systems, as a bucket's are."""

    def __init__(self, bucket: Path, folder: Path) -> None:
        super().__init__(ADDRESS, folder)
        self.bucket, self.store = bucket, fs.SubTreeFileSystem(str(bucket), fs.LocalFileSystem())

    def size(self, name: str) -> int | None:
        found = self.store.get_file_info(f"lake/{name}")
        return int(found.size) if found.is_file else None

    def open(self, name: str) -> io.BufferedIOBase:
        return io.BytesIO(self.store.open_input_stream(f"lake/{name}").read())

    def names(self, pattern: str) -> list[str]:
        root = self.bucket / "lake"
        return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        with self.staging.folder() as aside:
            yield aside / "made"
            self._put(aside / "made", name)

    def put_folder(self, made: Path, name: str) -> None:
        for path in made.iterdir():
            self._put(path, f"{name}/{path.name}")

    def _put(self, path: Path, name: str) -> None:
        self.store.create_dir(f"lake/{name}".rpartition("/")[0])
        with path.open("rb") as source, self.store.open_output_stream(f"lake/{name}") as target:
            shutil.copyfileobj(source, target)

    def connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        connection.register_filesystem(DuckBucket(self.store))
        return connection


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bucket").mkdir()
    monkeypatch.setattr(store, "files_at", lambda address: BucketFiles(tmp_path / "bucket", tmp_path / "here"))
    return tmp_path / "bucket"


def test_a_commit_is_written_there_and_read_by_sql(bucket: Path, tmp_path: Path) -> None:
    commit = Lake.open(ADDRESS).commit("run", "ab", {"responses": ROWS})
    lake = Lake.open(ADDRESS, create=False)
    assert lake.committed("ab") == commit and not commit.damaged()
    assert lake.answer("SELECT run_id FROM responses").to_pylist() == [{"run_id": "run"}]
    assert lake.read("responses", commits=[commit]).num_rows == 1
    assert not list((tmp_path / "here").rglob("*.parquet")), "no table is left on this machine"


def test_damage_there_is_named(bucket: Path) -> None:
    lake = Lake.open(ADDRESS)
    (file,) = lake.commit("run", "ab", {"responses": ROWS}).files
    (bucket / "lake" / file.path).write_bytes(b"broken")
    with pytest.raises(LakeError, match=f"{ADDRESS}/responses/run_id=run/shard=ab/part-0.parquet: damaged"):
        lake.answer("SELECT * FROM responses")
