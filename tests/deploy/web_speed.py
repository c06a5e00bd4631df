"""Time of a frame in headless Chromium, and whether the labels are Segmenter's.

Command, alone on the machine: python -m tests.deploy.web_speed SITE IMAGE... [--frames 20]

SITE is what ``mmseg-repvgg export ... --web SITE`` wrote. Its first model segments each image one
time to warm up, and then FRAMES times.
"""

import argparse
import base64
import json
from pathlib import Path

import numpy as np

from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.web_server import page_server
from tests.deploy.browser import browser, choose, served, wait

RESULT = """
const { labels, milliseconds } = segmentation.results[0];
let binary = '';
for (const label of labels) binary += String.fromCharCode(label);
return [milliseconds.total, milliseconds.network, btoa(binary)];
"""


def describe(seconds):
    """Median and range."""
    return f'{np.median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f}) ms'


def main():
    """Parse the arguments, time, and print a line for each image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('site', type=Path)
    parser.add_argument('images', type=Path, nargs='+')
    parser.add_argument('--frames', type=int, default=20)
    args = parser.parse_args()
    name = json.loads((args.site / 'models.json').read_text())['models'][0]
    segmenter = Segmenter(args.site / 'models' / name)
    server = page_server(args.site, port=0)
    with served(server) as address, browser() as driver:
        driver.get(address)
        wait(driver)
        threads = driver.find_element('id', 'threads').get_attribute('value')
        print(f'Chromium {driver.capabilities["browserVersion"]}, {name}, threads: {threads}')
        for path in args.images:
            choose(driver, path)
            times = []
            for _ in range(args.frames):
                choose(driver, path)
                times.append(driver.execute_script(RESULT))
            wanted = segmenter(path)
            found = np.frombuffer(base64.b64decode(times[-1][2]), np.uint8).reshape(wanted.shape)
            frame, network = (describe([row[index] for row in times]) for index in (0, 1))
            print(
                f'{path.name}: {frame} a frame, {network} in the network; '
                f'{np.mean(found == wanted):.3%} of the labels as by Segmenter',
                flush=True,
            )


if __name__ == '__main__':
    main()
