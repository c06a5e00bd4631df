"""The page in headless Chromium: labels are Segmenter's, and nothing comes from other addresses.

Needs selenium, chromium and chromedriver, and the npm package: WEB_RUNTIME names its tarball or
folder; otherwise npm downloads it.
"""

import base64
import functools
import http.server
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.web import write_page
from mmseg_repvgg.deploy.web_runtime import web_runtime
from mmseg_repvgg.deploy.web_server import page_server
from tests.deploy.browser import PROGRAMS, browser, choose, served, wait

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LABELS = """
const text = (labels) => {
  let binary = '';
  for (const label of labels) binary += String.fromCharCode(label);
  return btoa(binary);
};
return segmentation.results.map(({ name, labels }) => ({ name, labels: text(labels) }));
"""


@pytest.fixture(scope='module')
def driver():
    pytest.importorskip('selenium')
    if None in map(shutil.which, PROGRAMS):
        pytest.skip(f'{" and ".join(PROGRAMS)} are not installed')
    with browser() as driver:
        yield driver


@pytest.fixture(scope='module')
def images(scenes, tmp_path_factory):
    """Three files: a scene as PNG and JPEG, and one of another size, of CamVid if that is here."""
    folder = tmp_path_factory.mktemp('images')
    paths = [*sorted((scenes / 'leftImg8bit' / 'val').glob('*/*.png'))[:2]]
    scene = cv2.imread(str(paths[1]))
    paths[1] = folder / 'scene.jpg'
    cv2.imwrite(str(paths[1]), cv2.resize(scene, (256, 192)), [cv2.IMWRITE_JPEG_QUALITY, 95])
    camvid = sorted((PROJECT / 'data' / 'camvid' / 'val' / 'images').glob('*.png'))
    other = cv2.imread(str(camvid[0])) if camvid else cv2.resize(scene, (480, 360))
    # of 384 x 320, odd multiples of 128 x 64: no pixel lies half-way between two labels
    cv2.imwrite(str(folder / 'street.png'), other[:320, :384])
    return [*paths, folder / 'street.png']


@pytest.fixture(scope='module')
def models(segmentor, tmp_path_factory):
    """Exported in several ways; by name."""
    pytest.importorskip('onnxruntime')
    from mmseg_repvgg.deploy.export import Options, export
    from mmseg_repvgg.deploy.quantize.options import Int8Options

    cfg, _, checkpoint = segmentor
    folder = tmp_path_factory.mktemp('models')
    any_loss = Int8Options(images=4, check_images=2, agreement=0.01, miou_drop=100)
    kinds = {
        'fixed': Options(size=(64, 128)),
        'any': Options(dynamic_size=True),
        'inside': Options(size=(64, 128), preprocessing=True, argmax=True),
        'int8': Options(size=(64, 128), int8=any_loss),
    }
    return {
        name: export(cfg, checkpoint, folder / f'{name}.onnx', options=options).path
        for name, options in kinds.items()
    }


@pytest.fixture(scope='module')
def runtime():
    try:
        with web_runtime(os.environ.get('WEB_RUNTIME')) as folder:
            yield folder
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def site(models, runtime, tmp_path_factory):
    """A page with all models, of which each test gets a copy."""
    folder = tmp_path_factory.mktemp('web') / 'site'
    for path in models.values():
        write_page(path, folder, runtime)
    return folder


@pytest.fixture
def page(driver, site, tmp_path):
    """Opens a page with some of the models, whose descriptions are changed."""
    servers = []

    def open_page(*names, server=lambda folder: page_server(folder, port=0), **changes):
        folder = tmp_path / 'site'
        shutil.copytree(site, folder, copy_function=os.link, dirs_exist_ok=True)
        (folder / 'models.json').unlink()
        (folder / 'models.json').write_text(json.dumps(dict(models=[f'{n}.onnx' for n in names])))
        if changes:
            description = folder / 'models' / f'{names[0]}.onnx.json'
            info = {**json.loads(description.read_text()), **changes}
            description.unlink()
            description.write_text(json.dumps(info))
        servers.append(served(server(folder)))
        driver.get(servers[-1].__enter__())
        wait(driver)

    yield open_page
    driver.get('about:blank')
    for server in servers:
        server.__exit__(None, None, None)


def shown(driver, shape):
    """The label maps, by name of the model."""
    return {
        result['name']: np.frombuffer(base64.b64decode(result['labels']), np.uint8).reshape(shape)
        for result in driver.execute_script(LABELS)
    }


def text_of(driver, name):
    return driver.find_element('id', name).text


@pytest.mark.parametrize('name', ['fixed', 'any', 'inside'])
def test_labels_are_those_of_segmenter(driver, page, models, images, name):
    page(name)
    segmenter = Segmenter(models[name])
    for path in images:
        wanted = segmenter(path)
        choose(driver, path)
        (found,) = shown(driver, wanted.shape).values()
        agreement = np.mean(found == wanted)
        print(f'{name}, {path.name}: {agreement:.6f}')
        assert len(np.unique(wanted)) > 2
        assert agreement >= 0.999
        assert text_of(driver, 'error') == ''
    assert 'threads:' in driver.find_element('class name', 'time').text


def test_a_wrong_mean_is_found(driver, page, models, images):
    """Negative control."""
    page('fixed', mean=[0.0, 60.0, 200.0])
    wanted = Segmenter(models['fixed'])(images[2])
    choose(driver, images[2])
    (found,) = shown(driver, wanted.shape).values()
    assert np.mean(found == wanted) < 0.999  # the limit above


def test_two_models_are_compared(driver, page, models, images):
    page('fixed', 'int8')
    choose(driver, images[2])
    one, two = (Segmenter(models[name])(images[2]) for name in ('fixed', 'int8'))
    found = shown(driver, one.shape)
    assert list(found) == ['fixed (fp32)', 'int8 (int8)']
    print(f'int8: {np.mean(found["int8 (int8)"] == two):.6f}')
    assert np.mean(found['fixed (fp32)'] == one) >= 0.999
    assert np.mean(found['int8 (int8)'] == two) >= 0.99
    share = 100 * np.mean(found['fixed (fp32)'] == found['int8 (int8)'])
    assert text_of(driver, 'agreement') == f'The two models agree on {share:.2f} % of the pixels.'
    assert len(driver.find_elements('css selector', '#views figure')) == 2
    # the legend has the share of each class in each picture
    rows = driver.find_elements('css selector', '#legend tbody tr')
    classes = np.union1d(*map(np.unique, found.values()))
    assert len(rows) == len(classes)
    share = np.mean(found['fixed (fp32)'] == classes[0])
    cells = [cell.text for cell in rows[0].find_elements('css selector', 'td')]
    assert cells[0] in (f'{100 * share:.1f} %', '< 0.1 %')


def test_nothing_comes_from_other_addresses(driver, page, images):
    page('fixed')
    choose(driver, images[0])
    names = driver.execute_script(
        'return performance.getEntriesByType("resource").map((entry) => entry.name)'
    )
    assert names
    assert all(name.startswith((driver.current_url, 'data:')) for name in names)
    assert driver.execute_script('return crossOriginIsolated')
    outside = 'fetch("http://127.0.0.1:9/").then(() => "sent", String).then(arguments[0])'
    assert 'TypeError' in driver.execute_async_script(outside)


def test_a_file_that_is_no_image_is_named_and_the_page_goes_on(driver, page, images, tmp_path):
    page('fixed')
    (tmp_path / 'text.png').write_text('no image')
    choose(driver, tmp_path / 'text.png')
    assert text_of(driver, 'error') == 'text.png is not an image that this browser reads'
    choose(driver, images[0])
    assert text_of(driver, 'error') == ''
    assert text_of(driver, 'status') == 'Segmented 128 x 64 pixels.'


def test_the_camera(driver, page):
    from selenium.webdriver.support.ui import WebDriverWait

    page('fixed')
    button = driver.find_element('id', 'camera')
    button.click()
    WebDriverWait(driver, 60).until(
        lambda _: 'ms a frame' in driver.find_element('class name', 'time').text
    )
    assert button.text == 'Stop the camera'
    width, height = driver.execute_script(
        'const c = document.querySelector("#views canvas"); return [c.width, c.height]'
    )
    assert (width, height) == (640, 480)
    assert shown(driver, (height, width))
    button.click()
    wait(driver)
    assert button.text == 'Start the camera'
    assert driver.execute_script('return document.getElementById("video").srcObject') is None


def test_a_server_without_the_headers_gives_one_thread(driver, page, models, images):
    """With Python's own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def plain(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        return http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)

    page('fixed', server=plain)
    assert text_of(driver, 'notes').startswith('One thread: the server does not send the headers')
    wanted = Segmenter(models['fixed'])(images[0])
    choose(driver, images[0])
    (found,) = shown(driver, wanted.shape).values()
    assert np.mean(found == wanted) >= 0.999
    assert 'threads: 1' in driver.find_element('class name', 'time').text
