import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ridgeline.errors import InputError
from ridgeline.weights.resolve import find_config, find_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"sentencepiece",
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
    "consolidated.safetensors": b"the same weights again",
    "pytorch_model.bin": b"pickle",
    "onnx/config.json": b"{}",
    "README.md": b"# Model",
}
REPOSITORIES = {"org/whole": FILES, "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as a download needs."""

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.answer_api("/".join(parts[2:4]), parts[4:])
        else:
            self.answer_file("/".join(parts[:2]), "/".join(parts[4:]))

    do_HEAD = do_GET

    def answer_api(self, repository: str, rest: list[str]) -> None:
        if repository == "org/gated":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repository not in REPOSITORIES:
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                for path, content in REPOSITORIES[repository].items()
            ]
            self.answer(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": path} for path in REPOSITORIES[repository]]
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(info).encode())

    def answer_file(self, repository: str, path: str) -> None:
        content = REPOSITORIES[repository].get(path)
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(200, content, {"ETag": f'"{etag(content)}"'})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


def etag(content: bytes) -> str:
    return f"{hash(content) % 16**40:040x}"


@contextmanager
def running_hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def ask(call: str, home: Path, endpoint: str, **environment: str) -> str:
    """Run ``find_folder`` or ``find_config`` where the hub's address and cache are set from the start.

    Returns the path, or the message of the InputError after ``InputError: ``.
    """
    script = f"""
import sys
from ridgeline.errors import InputError
from ridgeline.weights.resolve import find_config, find_folder
try:
    print({call})
except InputError as error:
    print("InputError:", error)
"""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


# Without the hub


def test_an_existing_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    assert find_folder(str(tmp_path)) == tmp_path
    assert find_config(str(tmp_path)) == tmp_path / "config.json"
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find_folder(f"~/{tmp_path.name}") == tmp_path


def test_a_folder_goes_before_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder("org/name") == Path("org/name")


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        find_config(str(tmp_path))


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"is a file: give the model's folder, {tmp_path}"):
        find_folder(str(tmp_path / "config.json"))


@pytest.mark.parametrize("find", [find_folder, find_config])
def test_a_misspelt_built_in_name_gets_a_suggestion(find):
    with pytest.raises(InputError, match=r"^no model 'LLama3-8b': did you mean llama-3-8b\?$"):
        find("LLama3-8b", ["llama-2-7b", "llama-3-8b", "gpt2"])


@pytest.mark.parametrize(
    "model",
    ["", "nowhere", "/no/such/folder", "./no/folder", "~/no-such-folder", "a/b/c", "a/", "x" * 5000, "a\0b"],
)
def test_what_is_neither_folder_nor_hub_id_is_named_with_the_way_out(model):
    with pytest.raises(
        InputError, match=r"^no model .*: give a folder, a hub id \(org/name\) or a built-in model$"
    ):
        find_folder(model, ["llama-2-7b"])


def test_a_hub_id_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(InputError, match=r"org/name is not a folder, .* pip install 'ridgeline\[run\]'"):
        find_folder("org/name")


# With it


def test_a_hub_model_is_downloaded_once_and_then_found_without_the_hub(tmp_path):
    with running_hub() as endpoint:
        folder = Path(ask("find_folder('org/whole')", tmp_path, endpoint))
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "model-00001-of-00001.safetensors",
            "model.safetensors.index.json",
        }
        assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert ask("find_folder('org/whole')", tmp_path, endpoint) == str(folder)
    assert ask("find_config('org/whole')", tmp_path, endpoint, HF_HUB_OFFLINE="1") == f"{folder}/config.json"


def test_for_analysis_only_the_config_is_downloaded(tmp_path):
    with running_hub() as endpoint:
        config = Path(ask("find_config('org/whole')", tmp_path, endpoint))
        assert [path.name for path in config.parent.iterdir()] == ["config.json"]
    answer = ask("find_folder('org/whole')", tmp_path, endpoint)
    assert answer.startswith(
        "InputError: org/whole is neither a folder nor wholly in the cache, and the hub can't"
    )


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("find_folder('org/gated')", "org/gated is gated: ask for access at"),
        ("find_config('org/gated')", "org/gated is gated: ask for access at"),
        ("find_folder('org/missing')", "org/missing is neither a folder nor a model on the hub"),
        ("find_folder('org/na--me')", "org/na--me is neither a folder nor a model on the hub"),
        ("find_folder('org/pickled')", "org/pickled has no safetensors weights on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(tmp_path, call, problem):
    with running_hub() as endpoint:
        answer = ask(call, tmp_path, endpoint)
    assert answer.startswith(f"InputError: {problem}")
    assert "\n" not in answer


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "offline"])
def test_without_a_network_the_answer_comes_at_once(tmp_path, environment):
    answer = ask("find_folder('org/whole')", tmp_path, "http://127.0.0.1:9", **environment)
    assert answer.startswith(
        "InputError: org/whole is neither a folder nor wholly in the cache, and the hub can't"
    )
    assert answer.endswith("give a folder, or connect to the network")
    assert "\n" not in answer


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        impatient = "setattr(sys.modules['ridgeline.weights.resolve'], 'HUB_TIMEOUT_S', 0.5)"
        answer = ask(f"({impatient}, find_config('org/whole'))", tmp_path, endpoint)
    assert "the hub can't be reached (ReadTimeout" in answer
