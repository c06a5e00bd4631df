"""Open a page that export --web wrote: ``mmseg-repvgg serve-web site``.

The page segments images and the camera in the browser; this only serves its files, with the headers
that browsers need for several threads. By default only this machine can connect.
"""

import argparse

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.deploy.web_server import serve


def main() -> None:
    """Parse the options, and serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', help='folder that export --web wrote')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen at (%(default)s)')
    parser.add_argument('--port', type=int, default=8000, help='0: any free one (%(default)s)')
    parser.add_argument('--no-browser', action='store_true', help='do not open a browser')
    args = parser.parse_args()
    with user_errors('serve-web'):
        serve(args.folder, args.host, args.port, not args.no_browser)
