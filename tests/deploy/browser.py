"""Headless Chromium for the page that ``export --web`` writes; needs selenium."""

import shutil
import tempfile
import threading
from contextlib import contextmanager

FLAGS = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
    *('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'),
    '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1',  # offline
)
PROGRAMS = ('chromium', 'chromedriver')


@contextmanager
def browser():
    """A driver of selenium."""
    from selenium import webdriver

    binary, service = map(shutil.which, PROGRAMS)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f'--user-data-dir={profile}', '--window-size=1280,900'):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
        driver.set_script_timeout(120)
        try:
            yield driver
        finally:
            driver.quit()


@contextmanager
def served(server):
    """The address of a server that runs in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}/'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait(driver):
    """Until the page has done what it was asked for."""
    driver.execute_async_script('segmentation.done.then(arguments[0])')


def choose(driver, path):
    """Segment an image file."""
    field = driver.find_element('id', 'file')
    driver.execute_script('arguments[0].value = ""', field)  # the same file again is no change
    field.send_keys(str(path))
    wait(driver)
