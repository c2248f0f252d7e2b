"""Downloads from a server on this machine that behaves well, and badly."""

import contextlib
import functools
import hashlib
import http.server
import io
import socket
import threading
import time
import zipfile

import pytest

from jaxrec import download
from jaxrec.errors import InputError

CONTENT = b"1 1\n1 2\n" * 1000
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def git_id(content: bytes) -> str:
    return "git:" + hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


def zip_of(members: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`; what is under /short/ ends early, under /slow/ never begins."""

    def __init__(self, files, released, *args):
        self.files, self.released = files, released
        super().__init__(*args)

    def do_GET(self):
        content = self.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        if not self.path.startswith("/endless/"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path.startswith("/slow/"):
            self.released.wait(10)
        elif self.path.startswith("/short/"):
            self.wfile.write(content[: len(content) // 2])
        else:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

    def log_message(self, format, *args):
        del format, args


@pytest.fixture
def serve(monkeypatch):
    """Serves a dict path -> bytes, and returns the address."""
    monkeypatch.setenv("no_proxy", "*")
    released = threading.Event()
    with contextlib.ExitStack() as stack:

        def serve(files: dict[str, bytes]) -> str:
            handler = functools.partial(Handler, files, released)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            stack.callback(released.set)
            wait = functools.partial(server.serve_forever, poll_interval=0.01)
            threading.Thread(target=wait, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


def left_in(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def fetch(path, *remotes, **kwargs):
    download.fetch(tuple(download.Remote(*r) for r in remotes), path, **kwargs)


def test_checksums(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    # The ids that sha256sum and git hash-object print.
    assert download.matches(path, "git:ce013625030ba8dba906f756967f9e9ca394464a")
    sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert download.matches(path, f"sha256:{sha256}")
    assert not download.matches(path, f"sha256:{sha256[:-1]}4")
    assert not download.matches(path, git_id(b"hello"))


@pytest.mark.parametrize("checksum", [SHA256, git_id(CONTENT)])
def test_a_file(serve, tmp_path, capsys, checksum):
    url = serve({"/x.txt": CONTENT}) + "/x.txt"
    path = tmp_path / "new" / "folder" / "x.txt"
    fetch(path, (url, checksum), checksum=checksum)
    assert path.read_bytes() == CONTENT
    assert left_in(path.parent) == ["x.txt"]
    assert capsys.readouterr().err == f"downloading {url}\n"


@pytest.mark.parametrize(
    "members",
    [
        {"x.txt": CONTENT},
        {"data/x.txt": CONTENT},
        {"data/": b"", "data/x.txt": CONTENT, "__MACOSX/data/._x.txt": b"?"},
    ],
    ids=["plain", "folder", "mac"],
)
def test_a_zip(serve, tmp_path, members):
    content = zip_of(members)
    url = serve({"/any.zip": content}) + "/any.zip"
    fetch(tmp_path / "x.txt", (url, git_id(content)), checksum=SHA256)
    assert (tmp_path / "x.txt").read_bytes() == CONTENT
    assert left_in(tmp_path) == ["x.txt"]


ZIP = zip_of({"x.txt": CONTENT})
BROKEN_ZIP = zip_of({"x.txt": CONTENT}, zipfile.ZIP_STORED).replace(b"1 2", b"1 3", 1)


@pytest.mark.parametrize(
    "path, content, checksum, message",
    [
        ("/gone.txt", None, SHA256, "HTTP 404 Not Found"),
        ("/short/x.txt", CONTENT, SHA256, "got 4000 of 8000 bytes"),
        ("/x.txt", CONTENT[1:], SHA256, f"its checksum is not {SHA256}"),
        ("/x.txt", CONTENT[1:], git_id(CONTENT[1:]), f"its checksum is not {SHA256}"),
        ("/endless/x.txt", CONTENT * 3, SHA256, "more than 20000 bytes"),
        ("/x.zip", ZIP[:-5], git_id(ZIP), "its checksum is not git:"),
        ("/x.zip", b"no zip", git_id(b"no zip"), "not a good zip: File is not a zip"),
        ("/x.zip", BROKEN_ZIP, git_id(BROKEN_ZIP), "not a good zip: Bad CRC"),
    ],
    # Not their contents: a zip has the time of its making in it.
    ids=["gone", "short", "other", "second", "endless", "cut", "no_zip", "broken_zip"],
)
def test_a_bad_download_leaves_nothing(
    serve, tmp_path, path, content, checksum, message
):
    url = serve({path: content} if content else {}) + path
    with pytest.raises(InputError, match=message) as raised:
        fetch(tmp_path / "x.txt", (url, checksum), checksum=SHA256, max_bytes=20_000)
    assert str(raised.value).startswith(url)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "members, message",
    [
        ({"../x.txt": CONTENT}, "must hold x.txt alone: it holds ../x.txt"),
        ({"/x.txt": CONTENT}, "must hold x.txt alone: it holds /x.txt"),
        ({"y.txt": CONTENT}, "must hold x.txt alone: it holds y.txt"),
        ({"x.txt": CONTENT, "y.txt": b""}, "it holds x.txt, y.txt"),
        ({"a/x.txt": CONTENT, "b/x.txt": b""}, "it holds a/x.txt, b/x.txt"),
        ({"__MACOSX/x.txt": CONTENT}, "must hold x.txt alone: it holds nothing"),
        ({"x.txt": b"\0" * 20_001}, "more than 20000 bytes"),
    ],
    ids=["parent", "absolute", "other", "two", "twice", "none", "bomb"],
)
def test_a_bad_zip_leaves_nothing(serve, tmp_path, members, message):
    folder = tmp_path / "inner"
    content = zip_of(members)
    url = serve({"/x.zip": content}) + "/x.zip"
    with pytest.raises(InputError, match=message):
        fetch(folder / "x.txt", (url, git_id(content)), max_bytes=20_000)
    assert left_in(folder) == []
    assert left_in(tmp_path) == ["inner"]


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.txt"
    with pytest.raises(InputError, match=r"x.txt: .*[Cc]onnection refused"):
        fetch(tmp_path / "x.txt", (url, SHA256))
    assert left_in(tmp_path) == []


def test_a_silent_server_is_given_up(serve, tmp_path):
    url = serve({"/slow/x.txt": CONTENT}) + "/slow/x.txt"
    start = time.monotonic()
    with pytest.raises(InputError, match="timed out"):
        fetch(tmp_path / "x.txt", (url, SHA256), timeout_s=0.2)
    assert time.monotonic() - start < 5
    assert left_in(tmp_path) == []


def test_the_next_remote_is_tried(serve, tmp_path):
    root = serve({"/bad.txt": b"?", "/x.txt": CONTENT})
    remotes = [(f"{root}/{name}.txt", SHA256) for name in ("gone", "bad", "x")]
    fetch(tmp_path / "x.txt", *remotes)
    assert (tmp_path / "x.txt").read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"gone.txt: HTTP 404 .*; .*bad.txt: not the"):
        fetch(tmp_path / "y.txt", *remotes[:2])
    assert left_in(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(serve, tmp_path, monkeypatch, interruption):
    def interrupted(url, file, **kwargs):
        file.write(CONTENT)
        file.flush()
        assert len(left_in(tmp_path)) == 1 and not (tmp_path / "x.txt").exists()
        raise interruption

    monkeypatch.setattr(download, "_download", interrupted)
    with pytest.raises(interruption):
        fetch(tmp_path / "x.txt", ("http://127.0.0.1/x.txt", SHA256))
    assert left_in(tmp_path) == []


def test_an_old_file_stays_when_a_download_fails(serve, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"old")
    with pytest.raises(InputError):
        fetch(tmp_path / "x.txt", (serve({}) + "/x.txt", SHA256))
    assert (tmp_path / "x.txt").read_bytes() == b"old"


def test_several_at_once(serve, tmp_path):
    url = serve({"/x.zip": ZIP}) + "/x.zip"
    path = tmp_path / "x.txt"
    threads = [
        threading.Thread(target=fetch, args=(path, (url, git_id(ZIP))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # Whenever the file is there, it is whole.
        with contextlib.suppress(FileNotFoundError):
            assert path.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["x.txt"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(InputError, match="no folder for downloads .* XDG_CACHE_HOME"):
        fetch(tmp_path / "cache" / "x.txt", ("http://127.0.0.1/x.txt", SHA256))


def test_a_terminal_sees_a_bar(serve, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fetch(tmp_path / "x.txt", (serve({"/x.txt": CONTENT}) + "/x.txt", SHA256))
    assert "x.txt" in terminal.getvalue() and "8.0/8.0 kB" in terminal.getvalue()
