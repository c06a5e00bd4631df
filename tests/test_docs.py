"""The documentation: its links lead somewhere, and messages in it are those of the code."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGES = [
    *(PROJECT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'CHANGELOG')),
    *sorted(PROJECT.glob('docs/**/*.md')),
    *sorted(PROJECT.glob('benchmarks/**/*.md')),
    *sorted(PROJECT.glob('notebooks/*.py')),
]
LINK = re.compile(r'\]\((?![a-z]+:)([^)#\s]*)#?([^)\s]*)\)')


def text_of(page):
    """Markdown without its blocks of code."""
    return re.sub(r'^```.*?^```', '', page.read_text('utf-8'), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """As git hosts make them of headings; mkdocs.yml sets the same for the site."""
    headings = re.findall(r'^#+ (.+)$', text_of(page), flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for text in headings}


def broken_links(page):
    found = []
    for path, anchor in LINK.findall(text_of(page)):
        target = page.parent / path if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            found.append(f'{path}#{anchor}')
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_links_lead_to_files_and_headings(page):
    if not (PROJECT / 'benchmarks').exists():
        pytest.skip('source distributions have no records of benchmarks')
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / 'b.md').write_text('# Table 8: PSPNet, `x_y`\n```\n# no heading\n```\n')
    page = tmp_path / 'a.md'
    page.write_text(
        '# Top\n[1](b.md) [2](b.md#table-8-pspnet-x_y) [3](#top) [4](https://c.org/d#e)\n'
        '![5](c.png) [6](b.md#no-heading) [7](#bottom)\n```\n[8](d.md)\n```\n'
    )
    assert broken_links(page) == ['c.png#', 'b.md#no-heading', '#bottom']


# The messages in docs/troubleshooting.md.


def messages_of_the_package():
    """Every string in the code, with ... for what is filled in."""
    for path in sorted((PROJECT / 'mmseg_repvgg').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (getattr(part, 'value', '') for part in node.values)
                yield ''.join(part if isinstance(part, str) else '...' for part in parts)


def test_quoted_messages_are_those_of_the_code():
    """All but those that are followed by the package that they come from."""
    text = (PROJECT / 'docs/troubleshooting.md').read_text('utf-8')
    quoted = re.findall(r'^\| `([^`]+)` \|', text, flags=re.MULTILINE)
    assert len(quoted) > 30
    messages = '\n'.join(messages_of_the_package())
    assert [quote for quote in quoted if quote.removesuffix(' ...') not in messages] == []


@pytest.mark.parametrize('package', ['models', 'reparam', 'checkpoint', 'engine'])
def test_the_reference_has_every_public_name(package):
    text = (PROJECT / f'docs/api/{package}.md').read_text('utf-8')
    found = re.findall(rf'^::: mmseg_repvgg\.{package}\.(\w+)$', text, flags=re.MULTILINE)
    assert sorted(found) == sorted(import_module(f'mmseg_repvgg.{package}').__all__)
