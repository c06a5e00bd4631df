"""Pages for the browser: their files, the runtime's files, errors, and the server's headers.

tests/deploy/test_web_page.py tests the page's code in Node, test_web_browser.py in a browser.
"""

import io
import json
import re
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mmseg_repvgg.deploy import web, web_runtime, web_server
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.web import PAGE, check_description, check_page, needs_runtime, write_page
from mmseg_repvgg.deploy.web_runtime import FILES, INTEGRITY, TARBALL, VERSION
from tests.deploy.networks import INFO

PROJECT = Path(__file__).parents[2]


def made(folder, name='a0.onnx', **info):
    """A file that is no model, with a description."""
    path = folder / name
    path.write_bytes(b'no model')
    ModelDescription(**{**INFO, **info}).write(path)
    return path


@pytest.fixture
def package(tmp_path):
    """The npm package, with other files in it."""
    folder = tmp_path / 'node_modules' / 'onnxruntime-web'
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'not {name}')
    (folder / 'package.json').write_text(json.dumps(dict(version=VERSION)))
    (folder / 'dist' / 'ort.webgl.mjs').write_text('not needed')
    return folder


@pytest.fixture
def no_npm(monkeypatch):
    monkeypatch.setattr(web_runtime.shutil, 'which', lambda name: None)


def found(folder):
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob('*') if f.is_file())


# The page.


def test_a_page_and_its_second_model(tmp_path, package):
    site = tmp_path / 'a' / 'site'
    assert needs_runtime(site)
    assert write_page(made(tmp_path), site, package) == site
    own = [path.name for path in PAGE.iterdir()]
    runtime = [f'runtime/{Path(name).name}' for name in FILES]
    model = ['models.json', 'models/a0.onnx', 'models/a0.onnx.json']
    assert found(site) == sorted([*own, *runtime, *model])
    assert {'index.html', 'style.css', 'page.mjs', 'worker.mjs'} < set(own)
    assert [path.name for path in site.parent.iterdir()] == ['site']
    assert (site / 'models' / 'a0.onnx').read_bytes() == b'no model'

    (site / 'page.mjs').write_text('of an older version')
    assert not needs_runtime(site)
    write_page(made(tmp_path, 'a0_int8.onnx', precision='int8'), site)
    assert json.loads((site / 'models.json').read_text()) == dict(
        models=['a0.onnx', 'a0_int8.onnx']
    )
    assert (site / 'page.mjs').read_bytes() == (PAGE / 'page.mjs').read_bytes()
    assert json.loads((site / 'models/a0_int8.onnx.json').read_text())['precision'] == 'int8'
    assert len(found(site)) == len(own) + len(runtime) + 5

    with pytest.raises(ValueError, match=r'x, y, are not those of a0\.onnx in .*site: give a new'):
        write_page(made(tmp_path, 'b.onnx', classes=('x', 'y'), palette=()), site)


def test_a_model_of_the_same_name_is_replaced(tmp_path, package):
    site = write_page(made(tmp_path), tmp_path / 'site', package)
    write_page(made(tmp_path, 'b.onnx'), site)
    (tmp_path / 'new').mkdir()
    path = made(tmp_path / 'new', precision='fp16')
    description = Path(f'{path}.json')
    old = {k: v for k, v in json.loads(description.read_text()).items() if k != 'dynamic_size'}
    description.write_text(json.dumps(old))  # of an older version
    write_page(path, site)
    assert json.loads((site / 'models.json').read_text())['models'] == ['a0.onnx', 'b.onnx']
    written = json.loads((site / 'models' / 'a0.onnx.json').read_text())
    assert (written['precision'], written['dynamic_size']) == ('fp16', False)


def test_a_model_whose_copy_fails_is_not_listed(tmp_path, package, monkeypatch):
    site = write_page(made(tmp_path), tmp_path / 'site', package)

    def full(source, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(web.shutil, 'copyfile', full)
    with pytest.raises(OSError, match='No space left'):
        write_page(tmp_path / 'a0.onnx', site)
    assert json.loads((site / 'models.json').read_text()) == dict(models=[])


def test_a_runtime_of_another_version_is_replaced(tmp_path, package):
    site = write_page(made(tmp_path), tmp_path / 'site', package)
    (site / 'runtime' / 'package.json').write_text('{"version": "1.0.0"}')
    assert needs_runtime(site)
    write_page(made(tmp_path, 'b.onnx'), site, package)
    assert not needs_runtime(site)


def test_an_empty_folder_takes_a_page_and_another_does_not(tmp_path, package):
    (tmp_path / 'empty').mkdir()
    assert (write_page(made(tmp_path), tmp_path / 'empty', package) / 'index.html').is_file()
    with pytest.raises(ValueError, match='has other files and no page in it: give a new folder'):
        check_page('a0.onnx', tmp_path)
    with pytest.raises(ValueError, match=r'a0\.onnx is a file; give a folder'):
        check_page('a0.onnx', tmp_path / 'a0.onnx')


def test_an_interrupted_page_leaves_nothing(tmp_path, package, monkeypatch):
    path = made(tmp_path)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(web, 'copy_runtime', full)
    with pytest.raises(OSError, match='No space left'):
        write_page(path, tmp_path / 'x' / 'site', package)
    assert not list((tmp_path / 'x').iterdir())


def test_models_that_the_page_cannot_run(tmp_path, package):
    with pytest.raises(ValueError, match=r"'m.xml' cannot go into a web page: .* \.onnx only"):
        check_page('m.xml', tmp_path / 'site')
    (tmp_path / 'a0.onnx.data').write_bytes(b'weights')
    with pytest.raises(ValueError, match='has its weights in another file'):
        write_page(made(tmp_path), tmp_path / 'site', package)
    assert not (tmp_path / 'site').exists()


@pytest.mark.parametrize(
    ('info', 'message'),
    [
        (dict(channels=4, mean=(0,) * 4, std=(1,) * 4), "4 channels as 'color'"),
        (dict(color_type='grayscale'), "3 channels as 'grayscale'"),
        (dict(left_out=('Rotate',)), 'do Rotate, which --leave-out leaves to the caller'),
        (dict(argmax_inside=True, stride=(4, 4)), 'windows of labels: export without --argmax'),
    ],
)
def test_descriptions_that_the_page_cannot_follow(info, message):
    with pytest.raises(ValueError, match=f'the page in the browser cannot .*{message}'):
        check_description(ModelDescription(**{**INFO, **info}))
    check_description(ModelDescription(**dict(INFO, stride=(4, 4))))
    check_description(ModelDescription(**dict(INFO, argmax_inside=True, dynamic_size=True)))


def test_the_page_names_files_that_are_there():
    """Also those of the runtime, and no address on the internet."""
    names = {path.name for path in PAGE.iterdir()} | {Path(name).name for name in FILES}
    text = '\n'.join(path.read_text('utf-8') for path in PAGE.iterdir())
    used = set(re.findall(r"""['"/]([\w.-]+\.(?:mjs|css|wasm))['"`]""", text))
    assert {'page.mjs', 'worker.mjs', 'ort.wasm.min.mjs', 'ort.webgpu.min.mjs'} <= used <= names
    assert '://' not in text


def test_export_asks_before_it_works_and_writes_the_page_after(
    tmp_path, package, monkeypatch, capsys
):
    command = pytest.importorskip('mmseg_repvgg.commands.export')
    calls, site = [], tmp_path / 'site'

    def export(cfg, checkpoint, out, model_format, options, check):
        calls.append(check)
        assert not site.exists()
        made(tmp_path)
        return 'exported'

    def run(*options):
        config = str(PROJECT / 'configs' / 'demo_pspnet_repvgg_a0.py')
        arguments = [config, 'a0.pth', str(tmp_path / 'a0.onnx'), *map(str, options)]
        monkeypatch.setattr('sys.argv', ['export', *arguments])
        command.main()

    monkeypatch.setattr(command, 'export', export)
    run('--web', site, '--web-runtime', package)
    assert calls == [check_description]
    assert capsys.readouterr().out.splitlines() == ['exported', f'wrote {site}']
    with pytest.raises(SystemExit, match='not found: --web-runtime takes the file'):
        run('--web', tmp_path / 'b', '--web-runtime', tmp_path / 'x.tgz')
    with pytest.raises(SystemExit, match='has other files and no page in it'):
        run('--web', tmp_path)
    with pytest.raises(SystemExit):
        run('--web-runtime', package)
    assert '--web-runtime has no effect without --web' in capsys.readouterr().err
    assert len(calls) == 1


# The runtime.


def test_the_unpacked_package_and_its_errors(package, no_npm, tmp_path):
    with web_runtime.web_runtime(package) as folder:
        assert folder == package
    (package / 'package.json').write_text('{"version": "1.0.0"}')
    with (
        pytest.raises(ValueError, match=rf'has version 1\.0\.0 .* onnxruntime-web@{VERSION}'),
        web_runtime.web_runtime(package),
    ):
        pass
    (package / FILES[1]).unlink()
    with (
        pytest.raises(ValueError, match=rf'it lacks {FILES[1]}\. Give node_modules'),
        web_runtime.web_runtime(package),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match=rf'--web-runtime takes the file {TARBALL}'),
        web_runtime.web_runtime(tmp_path / TARBALL),
    ):
        pass


def packed(package, path):
    """As npm packs it; returns its hash."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode='w:gz') as archive:
        archive.add(package, 'package')
    path.write_bytes(content.getvalue())
    return web_runtime.hashlib.sha512(content.getvalue())


def test_a_tarball_is_unpacked_if_its_hash_is_right(package, tmp_path, monkeypatch):
    path = tmp_path / 'x.tgz'
    digest = packed(package, path)
    with (
        pytest.raises(ValueError, match=rf'x\.tgz is not onnxruntime-web {VERSION} as npm'),
        web_runtime.web_runtime(path),
    ):
        pass
    monkeypatch.setattr(
        web_runtime,
        'INTEGRITY',
        'sha512-' + web_runtime.base64.b64encode(digest.digest()).decode(),
    )
    with web_runtime.web_runtime(path) as folder:
        assert found(folder) == sorted(FILES)
    assert not folder.exists()


def test_the_hash_has_the_length_of_sha512():
    algorithm, _, text = INTEGRITY.partition('-')
    assert (algorithm, len(web_runtime.base64.b64decode(text))) == ('sha512', 64)


def test_npm_is_missing_or_refuses(no_npm, monkeypatch):
    remedy = rf'npm pack onnxruntime-web@{VERSION}, .*: --web-runtime {TARBALL}'
    with (
        pytest.raises(RuntimeError, match=f'is not installed: install Node.js. .*{remedy}'),
        web_runtime.web_runtime(),
    ):
        pass

    def refuse(command, **_):
        assert command[1:3] == ['pack', f'onnxruntime-web@{VERSION}']
        return subprocess.CompletedProcess(command, 1, '', 'npm error code ENOTFOUND')

    monkeypatch.setattr(web_runtime.shutil, 'which', lambda name: '/usr/bin/npm')
    monkeypatch.setattr(web_runtime.subprocess, 'run', refuse)
    with (
        pytest.raises(
            RuntimeError, match=f'could not download .*: npm error code ENOTFOUND.*{remedy}'
        ),
        web_runtime.web_runtime(),
    ):
        pass


# The server.


@pytest.fixture
def address(tmp_path, package):
    site = write_page(made(tmp_path), tmp_path / 'site', package)
    with web_server.page_server(site, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        server.shutdown()
        thread.join()


def ask(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('', 'text/html'),
        ('page.mjs', 'text/javascript'),
        ('style.css', 'text/css'),
        ('models.json', 'application/json'),
        ('models/a0.onnx', 'application/octet-stream'),
        ('runtime/ort-wasm-simd-threaded.wasm', 'application/wasm'),
    ],
)
def test_files_come_with_their_type_and_the_headers_of_threads(address, name, kind):
    status, headers, content = ask(f'{address}/{name}')
    assert (status, headers['Content-Type']) == (200, kind)
    assert content
    assert headers['Cross-Origin-Opener-Policy'] == 'same-origin'
    assert headers['Cross-Origin-Embedder-Policy'] == 'require-corp'


def test_no_other_files_and_no_listings(address):
    for path in ('models/', 'runtime', 'nothing.mjs', '../a0.onnx', '%2e%2e/a0.onnx'):
        assert ask(f'{address}/{path}')[0] == 404, path


def test_the_page_forbids_other_addresses_with_and_without_this_server(address):
    _, headers, content = ask(f'{address}/')
    policy = headers['Content-Security-Policy']
    assert policy.startswith("default-src 'none';")
    assert f'content="{policy}"' in content.decode()
    assert not re.search(r'https?:|\*', policy)


def test_a_folder_without_a_page_and_a_port_in_use(tmp_path, address):
    with pytest.raises(
        FileNotFoundError, match=r'has no page with a model: .* --web .* writes one'
    ):
        web_server.page_server(tmp_path)
    port = int(address.rpartition(':')[2])
    with pytest.raises(OSError, match=f'cannot listen at 127.0.0.1, port {port}: '):
        web_server.page_server(tmp_path / 'site', port=port)
    with pytest.raises(OSError, match='port 70000'):
        web_server.page_server(tmp_path / 'site', port=70000)


@pytest.mark.parametrize('host', ['127.0.0.1', '0.0.0.0'])
def test_the_browser_is_opened_unless_it_is_not_wanted(
    tmp_path, package, monkeypatch, capsys, host
):
    site, opened = write_page(made(tmp_path), tmp_path / 'site', package), []

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(web_server.webbrowser, 'open', opened.append)
    monkeypatch.setattr(web_server._Server, 'serve_forever', stop)
    for browser in (True, False):
        web_server.serve(site, host, 0, browser)
    (url,) = opened
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'serving {site} at {url}'
    assert re.fullmatch(rf'http://{host}:\d+', url)
    assert ('note: threads and the camera need https' in ' '.join(lines)) == (host == '0.0.0.0')
