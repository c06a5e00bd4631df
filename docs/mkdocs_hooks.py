"""Hooks of MkDocs: links lead to the same files in the site as in the repository.

README.md is the first page. A file outside docs/ that a page links to (the changelog, a config, the
record of a benchmark) becomes part of the site under its path in the repository, so that no address
of the repository is needed. Roles in docstrings (``:func:`x` ``) become links, too.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'(?<=\]\()(?![a-z]+:|#)[^)\s#]+')
"""The target of a relative link in Markdown, without its anchor."""


def site_path(path: str) -> str:
    """Path in the site's sources of a file, given its path in the repository."""
    return 'index.md' if path == 'README.md' else path.removeprefix('docs/')


def linked_files(path: str) -> Iterator[str]:
    """The existing files that a Markdown file links to; all are paths in the repository."""
    for target in LINK.findall((ROOT / path).read_text(encoding='utf-8')):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if (ROOT / target).is_file():
            yield target


def on_files(files: Files, config: Any) -> Files:
    """Add README.md and, from there on, every linked file outside docs/."""
    waiting = ['README.md', *(f'docs/{file.src_uri}' for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith('docs/'):
            source = str(ROOT / path)
            files.append(File.generated(config, site_path(path), abs_src_path=source))
        new = set(linked_files(path)) - seen if path.endswith('.md') else set()
        seen |= new
        waiting += new
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links relative to the page's place in the site."""
    source = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()

    def moved(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[0]))
        return posixpath.relpath(site_path(target), posixpath.dirname(page.file.src_uri) or '.')

    return LINK.sub(moved, markdown)


class SphinxRoles(griffe.Extension):
    """Turns roles in docstrings into links, where the site has what they name."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object."""

        def link(role: re.Match) -> str:
            name = role[1].lstrip('~.')
            is_full = name.startswith('mmseg_repvgg')
            target = name if is_full else f'{obj.module.path}.{name}'
            text = name.rpartition('.')[2]
            return f'<autoref identifier="{target}" optional><code>{text}</code></autoref>'

        if obj.docstring:
            obj.docstring.value = re.sub(r':[a-z]+:`([~.\w]+)`', link, obj.docstring.value)
