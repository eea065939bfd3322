"""tools/download_data.py: downloads from a server on this machine, resumed ones, and unsafe archives."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import os
import re
import socket
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = {
    "nerf_synthetic/lego/transforms_train.json": b'{"frames": []}',
    "nerf_synthetic/lego/train/r_0.png": os.urandom(200_000),
    "nerf_llff_data/fern/poses_bounds.npy": os.urandom(3000),
}


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


@dataclasses.dataclass
class Server:
    """A web server on this machine.

    Attributes:
        address: where it is.
        files: what it has, by name.
        cuts: bytes after which it ends the connection, for one answer after another that has a body to send.
        ranges: whether it gives parts of files.
        etag: of all files; None: it says of no version.
        requests: what it was asked for: path and Range.
    """

    address: str = ""
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    cuts: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"1"'
    kind: str = "application/zip"
    length: bool = True
    requests: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        content = self.files.get(handler.path.lstrip("/"))
        if content is None:
            handler.send_error(404)
            return
        first, whole = 0, len(content)
        if asked and self.ranges and handler.headers.get("If-Range") in (None, self.etag):
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        handler.send_response(206 if first else 200)
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.length:
            handler.send_header("Content-Length", str(whole - first))
        handler.send_header("Content-Type", self.kind)
        # A request without a range before one with it is only asked for its headers; when they have gone, the next
        # request may come.
        cut = self.cuts.pop(0) if self.cuts else whole
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(content[first : first + cut])
            handler.wfile.flush()
        if cut < whole - first:
            handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server() -> Iterator[Server]:
    answering = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answering.answer(self)

        def log_message(self, *_: object) -> None:
            """Keeps the output of tests clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        answering.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield answering
        running.shutdown()
        thread.join()


@pytest.fixture
def module(tool, monkeypatch):
    module = tool("download_data")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    archives = {name: archive._replace(addresses=()) for name, archive in module.ARCHIVES.items()}
    monkeypatch.setattr(module, "ARCHIVES", archives)  # no test asks the world
    return module


@pytest.fixture
def download(module, server, tmp_path, capsys):
    """Runs the program for the example data; returns its exit code, and what it says."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = module.main(["example_data", "--mirror", server.address, "--out", str(tmp_path / "data"), *arguments])
        printed = capsys.readouterr()
        return code, printed.out.strip(), printed.err.strip()

    return run


def assert_unpacked(folder: Path) -> None:
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content
    assert not [*folder.glob("*.part"), *folder.rglob(".unfinished-*")]


def test_download_checks_and_unpacks(download, server, tmp_path):
    archive = server.files["nerf_example_data.zip"] = zip_of(FILES)
    code, out, err = download()
    assert (code, out) == (0, f"{tmp_path}/data/nerf_llff_data\n{tmp_path}/data/nerf_synthetic")
    assert f"nerf_example_data.zip: SHA-256 {hashlib.sha256(archive).hexdigest()} (none known to compare" in err
    assert "nerf_example_data.zip: 100 % of 0.2 MB" in err
    assert_unpacked(tmp_path / "data")
    assert server.requests == [("/nerf_example_data.zip", None)]
    assert download("--sha256", hashlib.sha256(archive).hexdigest().upper())[0] == 0
    assert len(server.requests) == 1  # the archive is there


def test_another_checksum_is_refused_before_anything_is_unpacked(download, server, tmp_path):
    archive = server.files["nerf_example_data.zip"] = zip_of(FILES)
    code, _, err = download("--sha256", "0" * 64)
    assert code == 1
    assert err.splitlines()[-1] == (
        f"download_data: {tmp_path}/data/nerf_example_data.zip: has SHA-256 {hashlib.sha256(archive).hexdigest()}, not "
        f"{'0' * 64}; delete it and download it again"
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["nerf_example_data.zip"]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(download, server, tmp_path):
    whole = len(zip_of(FILES))
    server.files["nerf_example_data.zip"] = zip_of(FILES)
    server.cuts = [50_000, whole, 70_000]  # then a request for the headers, and the rest of it is cut again
    assert download()[0] == 0
    assert_unpacked(tmp_path / "data")
    assert [asked for _, asked in server.requests if asked] == ["bytes=50000-", "bytes=120000-"]


@pytest.mark.parametrize("etag", ['"1"', None])
def test_a_later_call_goes_on_with_what_came_before(download, module, server, tmp_path, monkeypatch, etag):
    server.files["nerf_example_data.zip"], server.etag = zip_of(FILES), etag
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cuts = [60_000]
    code, _, err = download()
    assert code == 1
    assert f"nerf_example_data.zip: no address gave it: {server.address}/nerf_example_data.zip (the connection" in err
    assert "ended after 60000 of" in err
    assert [path.stat().st_size for path in (tmp_path / "data").iterdir()] == [60_000]
    server.requests.clear()
    assert download()[0] == 0
    assert [asked for _, asked in server.requests] == [None, "bytes=60000-"]
    assert_unpacked(tmp_path / "data")


def test_pieces_of_two_versions_are_not_put_together(download, module, server, tmp_path, monkeypatch):
    other = FILES | {"nerf_synthetic/lego/train/r_0.png": os.urandom(200_000)}
    server.files["nerf_example_data.zip"] = zip_of(other)
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cuts = [60_000]
    assert download()[0] == 1
    server.files["nerf_example_data.zip"], server.etag = zip_of(FILES), '"2"'
    assert download()[0] == 0
    assert_unpacked(tmp_path / "data")


def test_a_server_that_gives_whole_files_only(download, module, server, tmp_path, monkeypatch):
    server.files["nerf_example_data.zip"], server.ranges = zip_of(FILES), False
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cuts = [60_000]
    assert download()[0] == 1
    assert download()[0] == 0
    assert_unpacked(tmp_path / "data")


def test_the_next_address_is_asked_when_one_fails(module, server, tmp_path):
    server.files["b.zip"] = b"content"
    addresses = ["http://127.0.0.1:1/b.zip", f"{server.address}/a.zip", "file:///etc/passwd", f"{server.address}/b.zip"]
    found = module.download(addresses, tmp_path / "b.zip")
    assert found == hashlib.sha256(b"content").hexdigest()
    with pytest.raises(OSError, match=r"c\.zip: no address gave it: .*refused.*, .*Not Found.*, .*begins with http"):
        module.download(addresses[:3], tmp_path / "c.zip")


def test_what_is_no_file_is_refused(download, server, tmp_path):
    server.files["nerf_example_data.zip"], server.kind = b"<html>quota</html>", "text/html"
    code, _, err = download()
    assert code == 1
    assert "it answers with a web page, as Google Drive does after" in err
    server.kind, server.length = "application/zip", False
    assert "it does not say how large the file is" in download()[2]
    assert list((tmp_path / "data").iterdir()) == []


def test_no_room_is_said_before_anything_is_written(download, module, server, tmp_path, monkeypatch):
    server.files["nerf_example_data.zip"] = zip_of(FILES)
    free = [1000]
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    code, _, err = download()
    assert code == 1
    assert "data: what is missing of nerf_example_data.zip takes 0.2 MB, and 0.0 MB are free; make room or" in err
    assert list((tmp_path / "data").iterdir()) == []
    (tmp_path / "data" / "nerf_example_data.zip").write_bytes(zip_of(FILES))
    code, _, err = download()
    assert code == 1
    assert "data: what nerf_example_data.zip holds takes 0.2 MB, and 0.0 MB are free; make room or give another" in err
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["nerf_example_data.zip"]


def test_unpacking_goes_on_where_it_was_stopped(module, tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of(FILES))
    module.unpack(tmp_path / "a.zip", tmp_path)
    kept = tmp_path / "nerf_llff_data/fern/poses_bounds.npy"
    before = kept.stat().st_mtime_ns
    (tmp_path / "nerf_synthetic/lego/train/r_0.png").unlink()
    module.unpack(tmp_path / "a.zip", tmp_path)
    assert_unpacked(tmp_path)
    assert kept.stat().st_mtime_ns == before


def test_files_of_ones_own_are_not_replaced(module, tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of(FILES))
    own = tmp_path / "nerf_llff_data/fern/poses_bounds.npy"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(OSError, match=r"poses_bounds\.npy: is there already and is not what the archive holds; move"):
        module.unpack(tmp_path / "a.zip", tmp_path)
    assert own.read_bytes() == b"mine"
    assert not (tmp_path / "nerf_synthetic").exists()


def test_what_macs_add_is_left_out(module, tmp_path):
    extra = {"__MACOSX/lego/._r_0.png": b"x", "lego/.DS_Store": b"x", "lego/._r_0.png": b"x", "lego/r_0.png": b"y"}
    (tmp_path / "a.zip").write_bytes(zip_of(extra | {"lego/train/": b""}))
    assert module.unpack(tmp_path / "a.zip", tmp_path / "data") == [tmp_path / "data" / "lego"]
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["lego", "r_0.png"]


def member(name: str, content: bytes = b"x", mode: int = 0, **changes: object) -> bytes:
    """An archive of a harmless file and one more."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = name  # as it is: the constructor would mend it
    info.external_attr = mode << 16
    info.create_system = 3
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("harmless", b"x")
        archive.writestr(info, content, **changes)
    return file.getvalue()


HOSTILE = {
    "parent": (member("../outside"), "'../outside' is no path within a folder"),
    "parent further on": (member("a/../../outside"), "is no path within a folder"),
    "absolute": (member("/tmp/outside"), "'/tmp/outside' is no path within a folder"),
    "backslash": (member("..\\outside"), "is no path within a folder"),
    "drive": (member("C:outside"), "is no path within a folder"),
    "terminal codes": (member("\x1b[31moutside"), "is no path within a folder"),
    "cut at zero": (member("a\x00/../../outside"), "is no path within a folder"),
    "link": (member("link", b"/etc", stat.S_IFLNK | 0o777), "'link' is a link or a device"),
    "device": (member("device", b"", stat.S_IFCHR | 0o666), "is a link or a device"),
    "pipe": (member("pipe", b"", stat.S_IFIFO | 0o666), "is a link or a device"),
    "bomb": (zip_of({"harmless": b"x", "zeros": bytes(10**8)}), "announces 100000001 bytes, more than 50 times"),
    "lzma": (zip_of({"harmless": b"x"}, zipfile.ZIP_LZMA), "compressed in an unusual way"),
    "text": (b"not found", "File is not a zip file"),
    "cut": (zip_of(FILES)[:-40], "File is not a zip file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_write_nothing(module, tmp_path, name):
    content, reason = HOSTILE[name]
    folder = tmp_path / "in" / "data"
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.zip: ") as raised:
        module.unpack(tmp_path / "a.zip", folder)
    assert reason in str(raised.value)
    assert str(raised.value).isprintable()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.zip"] == []
    assert not Path("/tmp/outside").exists()


def test_encrypted_archives_and_lying_headers(module, tmp_path):
    good = bytearray(zip_of({"a": b"x" * 100}, zipfile.ZIP_STORED))
    directory = good.index(b"PK\x01\x02")
    encrypted = bytearray(good)
    encrypted[directory + 8] |= 1
    smaller = bytearray(good)
    smaller[directory + 24 : directory + 28] = (10).to_bytes(4, "little")  # fewer bytes than follow
    damaged = bytearray(good)
    damaged[40] ^= 1
    for i, (content, reason) in enumerate([(encrypted, "encrypted"), (smaller, "Bad CRC-32"), (damaged, "Bad CRC-32")]):
        (tmp_path / f"{i}.zip").write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            module.unpack(tmp_path / f"{i}.zip", tmp_path / "data")
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".zip"]


def test_too_many_files(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_MEMBERS", 2)
    (tmp_path / "a.zip").write_bytes(zip_of(FILES))
    with pytest.raises(ValueError, match=r"a\.zip: it holds more than 2 files"):
        module.unpack(tmp_path / "a.zip", tmp_path)


def test_every_name_says_what_it_is(tool):
    module = tool("download_data")
    assert len({archive.file for archive in module.ARCHIVES.values()}) == len(module.ARCHIVES)
    for archive in module.ARCHIVES.values():
        assert archive.addresses
        assert all(address.startswith(("https://", "http://")) for address in archive.addresses)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing: not known; give one of example_data, fern_weights, lego_weights, blender, llff"),
        (["llff", "--sha256", "12"], "--sha256 12: give the 64 digits of one archive, and its NAME alone"),
        (["llff", "blender", "--sha256", "0" * 64], "give the 64 digits of one archive"),
        (["llff", "--mirror", "ftp://a"], "--mirror ftp://a: an address begins with http:// or https://"),
    ],
)
def test_wrong_arguments(module, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        module.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
