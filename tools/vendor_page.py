"""Gets the JavaScript that the HTML report is made of from npm, pinned, into the package.

usage: python tools/vendor_page.py     (needs npm; CI doesn't run it, the files are in the repository)

To take a newer release: change its version and integrity here (`npm view NAME@VERSION dist.integrity`), run this, and run
tests/test_report_html.py.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent / "src" / "regional_inductor" / "page" / "vendor"


class Package(NamedTuple):
    name: str
    version: str
    integrity: str
    files: dict[str, str]


PACKAGES = (
    Package(
        "cytoscape",
        "3.35.0",
        "sha512-sMvBIXiGMnhkCaWz2R06FwF/27MNlS+Tqvi17foO9UhnUg3XGZccKjxsvEqQFAQYMSSZmN5SxYzUYlQ0DOJJ3g==",
        {"dist/cytoscape.min.js": "cytoscape.min.js", "LICENSE": "LICENSE.cytoscape"},
    ),
    Package(
        "cytoscape-dagre",
        "4.0.1",
        "sha512-hyNdh8Vp1nwzBcjHnM4c71G81bFhPmQYLXD2HM9AZIvl+8TrMzWEOPW45hF/XOBQiEguPcDQzi6VrXR1XBcXOA==",
        {
            "dist/cytoscape-dagre.min.js": "cytoscape-dagre.min.js",
            "LICENSE": "LICENSE.cytoscape-dagre",
        },
    ),
    # cytoscape-dagre's file has dagre inside; only its licence is needed from here.
    Package(
        "@dagrejs/dagre",
        "3.1.3",
        "sha512-X4aUTwOReZvthaZWOVHqlJ52/ZdhZFEM4+Lh/uR4XooUSLE6p71bcy7MPGzYnNUcNh+nj+i/qJQpCMIdQnSmrg==",
        {"LICENSE": "LICENSE.dagre"},
    ),
    Package(
        "sortable-tablesort",
        "4.1.7",
        "sha512-0LX+ca57WjhQCUZjkz7q1XOS4gQ7QhaVgkz3kGPqXPule8oDB5rOCvbWMIAnT8ElLePTBWMQHce1hFP82Hm5HA==",
        {
            "dist/sortable.min.js": "sortable.min.js",
            "dist/sortable.a11y.min.js": "sortable.a11y.min.js",
            "LICENSE": "LICENSE.sortable-tablesort",
        },
    ),
    Package(
        "@highlightjs/cdn-assets",
        "11.12.0",
        "sha512-KvOKXODaiFmId9xaq3xc5xCL66wVLUuOngDbO9B/kewbFTqdGbn2nJxNhN3H5R1cgDTVj6R8vH0zgiNDEGjpDw==",
        {"highlight.min.js": "highlight.min.js", "LICENSE": "LICENSE.highlightjs"},
    ),
)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            archive = fetched(package, Path(folder))
            with tarfile.open(archive) as files:
                for source, target in package.files.items():
                    content = files.extractfile(f"package/{source}")
                    if content is None:
                        raise SystemExit(f"{package.name} {package.version} has no {source}")
                    (FOLDER / target).write_bytes(content.read())
            print(package.name, package.version, *package.files.values())


def fetched(package: Package, folder: Path) -> Path:
    """The package's archive, if its hash is the one pinned here."""
    name = f"{package.name}@{package.version}"
    done = subprocess.run(
        ["npm", "pack", "--silent", name], cwd=folder, check=True, capture_output=True, text=True
    )
    archive = folder / done.stdout.split()[-1]
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package.integrity:
        raise SystemExit(f"{name} is not what was pinned: sha512-{digest}")
    return archive


if __name__ == "__main__":
    main()
