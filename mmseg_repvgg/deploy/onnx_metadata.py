"""What is written into an ONNX file itself, for users who lose its .json or read it elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from mmseg_repvgg.deploy.model_description import ModelDescription

KEYS = (
    *('classes', 'palette', 'mean', 'std', 'to_rgb', 'preprocessing_inside', 'argmax_inside'),
    *('threshold', 'stride', 'source_sha256', 'version'),
)
"""The fields of the description that are written, each as JSON, under these names."""


def write_metadata(path: Path, info: ModelDescription) -> None:
    """Write the description into the ``metadata_props`` of an ONNX file; weights stay as they are.

    ONNX Runtime gives them as ``session.get_modelmeta().custom_metadata_map``.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    values = {key: json.dumps(getattr(info, key)) for key in KEYS}
    onnx.helper.set_model_props(model, values)
    model.producer_name, model.producer_version = 'mmseg_repvgg', info.version
    onnx.save(model, str(path))
