"""Where the published ImageNet weights lie: mmpretrain's configs/repvgg/metafile.yml."""

from __future__ import annotations

_FOLDER = 'https://download.openmmlab.com/mmclassification/v0/repvgg/'
_HASHES = {
    'A0': '60ae8e23',
    'A1': 'f81bf3df',
    'A2': 'a8767caf',
    'B0': '5091ecc7',
    'B1': 'd17c45e7',
    'B1g2': 'ae6428fd',
    'B1g4': 'a7a4aaea',
    'B2': 'd8b420ef',
    'B2g4': '0c1990eb',
    'B3': '927a329a',
    'B3g4': 'e01cb280',
}

PUBLISHED = {
    **{
        arch: f'{_FOLDER}repvgg-{arch}_8xb32_in1k_20221213-{sha}.pth'
        for arch, sha in _HASHES.items()
    },
    'D2se': f'{_FOLDER}repvgg-D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k_'
    '20210909-cf3139b7.pth',
}
"""URL by architecture; B2g2 and B3g2 were not published there."""
