"""Every relative link, image and anchor in the Markdown documentation resolves to an existing file or heading."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(\s*<?([^)<>\s]+)>?(?:\s+[\"'][^)]*)?\)")  # also of an image that is a link
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^<>\s]+)", re.MULTILINE)
HTML = re.compile(r"<(?:a|img|source|video)\b[^>]*?\b(?:href|src)\s*=\s*[\"']([^\"']+)", re.IGNORECASE)
FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[`~]*\s*$", re.MULTILINE | re.DOTALL)
EXTERNAL = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)  # a scheme, such as https: or mailto:


def _documents():
    """Return the Markdown files at the root, in ``docs``, and in the folders of benchmarks, samples and weights."""
    patterns = ("*.md", "docs/**/*.md", "benchmarks/*.md", "weights/**/*.md", "samples/**/*.md")
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def _without_code(text):
    """Return Markdown without fenced blocks and inline code, in which brackets are no links."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", FENCED.sub("", text))


def _links(text):
    """Return the targets of all links and images that are not external."""
    text = _without_code(text)
    targets = [target for pattern in (LINK, REFERENCE, HTML) for target in pattern.findall(text)]
    return [target for target in targets if not EXTERNAL.match(target)]


def _anchors(text):
    """Return the anchors of a document: its headings as GitHub spells them, and explicit ``id`` and ``name`` attributes."""
    text = FENCED.sub("", text)
    anchors = set(re.findall(r"<[^>]*\b(?:id|name)\s*=\s*[\"']([^\"']+)", text))
    for heading in re.findall(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", text, re.MULTILINE):
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        copies = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor) is not None for anchor in anchors)
        anchors.add(f"{slug}-{copies}" if copies else slug)
    return anchors


def broken_links(document, text=None):
    """Return the targets in a Markdown file that do not resolve, with the reason.

    Args:
        document: Path of the file, relative to which its links are.
        text: Its content; read from the file if None.
    """
    text = document.read_text(encoding="utf-8") if text is None else text
    broken = []
    for target in _links(text):
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or not path.is_relative_to(ROOT):
            broken.append(f"{target}: no such file")
        elif anchor and path.suffix == ".md":
            content = path.read_text(encoding="utf-8") if name else text
            if anchor not in _anchors(content):
                broken.append(f"{target}: no such heading")
    return broken


@pytest.mark.parametrize("document", _documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(document):
    assert broken_links(document) == []


def test_linked_files_are_committed():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = {ROOT / name for name in tracked.stdout.split("\0") if name}
    known = files | {parent for path in files for parent in path.parents}
    for document in _documents():
        for target in _links(document.read_text(encoding="utf-8")):
            name = target.partition("#")[0]
            assert not name or (document.parent / name).resolve() in known, f"{document}: {target}"


@pytest.mark.parametrize(
    "text",
    [
        "[gone](docs/gone.md)",
        "![gone](docs/gone.png)",
        "[outside](../other/README.md)",
        "[no heading](#no-such-heading)",
        "[no heading elsewhere](CHANGELOG.md#no-such-heading)",
        "[![badge](docs/gone.svg)](README.md)",
        "[reference]: docs/gone.md",
        '<img src="docs/gone.png">',
        '[title](docs/gone.md "a title")',
    ],
)
def test_broken_links_are_reported(text):
    assert len(broken_links(ROOT / "README.md", text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[web](https://example.org/gone)",
        "[mail](mailto:someone@example.org)",
        "[file](pyproject.toml)",
        "[folder](docs/)",
        "# A title, with `code`!\n[heading](#a-title-with-code)",
        "## Twice\n## Twice\n[second](#twice-1)",
        '<a id="here"></a> [explicit](#here)',
        "`[code](gone.md)`",
        "```md\n[block](gone.md)\n```",
    ],
)
def test_valid_links_are_accepted(text):
    assert broken_links(ROOT / "README.md", text) == []
