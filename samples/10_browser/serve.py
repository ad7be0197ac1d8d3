"""Run the demo's language model in a browser: export it, and serve the page that streams its text.

    make browser                                  # then open the address that it prints
    python samples/10_browser/serve.py --test     # open it in a headless Chromium and compare its numbers with PyTorch

The page needs the npm package onnxruntime-web, which `make browser` fetches before it starts this script.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pom_export
from pom_export.errors import InputError, PomExportError
from pom_export.parity.comparison import Difference, difference
from pom_export.parity.tolerances import MODELS

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE.parent / "checkpoints" / "byte_lm.safetensors"
MODEL = HERE.parents[1] / "out" / "browser.onnx"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
LONGEST_TEST_S = 120


class Server(ThreadingHTTPServer):
    """Serves the page, the model and onnxruntime-web to this machine, and takes the page's results.

    Args:
        files: which folder or file is served under which path.
        port: where to listen; 0 takes any free port.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, Path], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.files = files
        self.results: queue.Queue[dict[str, Any]] = queue.Queue()

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def find(self, path: str) -> Path | None:
        """Return the file that a request asks for; None if there is none in the folders that are served."""
        for prefix, root in self.files.items():
            if path.startswith(prefix):
                file = (root / path.removeprefix(prefix)).resolve() if root.is_dir() else root
                inside = not root.is_dir() or file.is_relative_to(root.resolve())
                if inside and file.is_file():
                    return file
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers the page's requests."""

    server: Server

    def do_GET(self) -> None:
        """Send a file."""
        path = self.path.partition("?")[0]
        file = self.server.find("/index.html" if path == "/" else path)
        if file is None:
            self.send_error(404)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", TYPES.get(file.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        """Take the page's result."""
        self.server.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def start(packages: Path, model: Path, port: int = 0) -> Server:
    """Export the model and serve the page, with onnxruntime-web from a folder's node_modules.

    Raises:
        InputError: onnxruntime-web is not there.
    """
    package = packages / "node_modules" / "onnxruntime-web" / "dist"
    if not package.is_dir():
        raise InputError(f"onnxruntime-web is not in {packages}", "`make browser` fetches it and starts the page")
    pom_export.export(CHECKPOINT, model, stateful=True, inline=True)
    server = Server({"/ort/": package, "/model.onnx": model, "/": HERE}, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def find_browser() -> str:
    """Return the path of a Chromium.

    Raises:
        InputError: there is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise InputError("no Chromium was found on the PATH", f"Install one of {', '.join(BROWSERS)}")
    return found


def result_of_page(server: Server, browser: str) -> dict[str, Any]:
    """Open the page's test in a headless Chromium, and return what it computed.

    Raises:
        InputError: the page failed, or did not answer in time.
    """
    # Some of the browser's processes write to its profile for a moment after it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Without its sandbox, which needs rights that containers do not give; it only opens our own page.
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        page = subprocess.Popen([browser, *options, f"{server.address}?test"], stderr=subprocess.DEVNULL)
        try:
            result = server.results.get(timeout=LONGEST_TEST_S)
        except queue.Empty:
            raise InputError(f"{browser} did not finish within {LONGEST_TEST_S} s", "Open the page in it") from None
        finally:
            page.terminate()
            page.wait()
    if "error" in result:
        raise InputError(f"the page failed: {result['error']}", "Open it, and look at the browser's console")
    return result


def compare(result: dict[str, Any]) -> Difference:
    """Compare the page's logits with PyTorch's in float64, in one pass over the page's tokens."""
    module = pom_export.load_checkpoint(CHECKPOINT).double().eval()
    with torch.no_grad():
        expected = module(torch.tensor([result["ids"]])).numpy()
    return difference(np.array([result["logits"]]), expected, MODELS["float32"])


def main() -> int:
    """Serve the page until Ctrl-C, or test it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--packages", type=Path, default=Path(), help="the folder whose node_modules hold the package")
    parser.add_argument("--model", type=Path, default=MODEL, help="where the exported model goes")
    parser.add_argument("--test", action="store_true", help="compare the page's numbers, and exit")
    arguments = parser.parse_args()
    if arguments.test:
        browser = find_browser()
        result = result_of_page(start(arguments.packages, arguments.model), browser)
        found = compare(result)
        print(f"{result['versions']['browser']}, onnxruntime-web {result['versions']['onnxruntime-web']}")
        print(f"{len(result['ids'])} tokens, {result['milliseconds']:.1f} ms a token")
        print(f"max_abs {found.max_abs:.2e}, tolerance {found.tolerance:.2e}: {'pass' if found else 'FAIL'}")
        return 0 if found else 1
    print(start(arguments.packages, arguments.model, arguments.port).address)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PomExportError as failure:
        sys.exit(f"{failure}")
    except KeyboardInterrupt:
        sys.exit(130)
