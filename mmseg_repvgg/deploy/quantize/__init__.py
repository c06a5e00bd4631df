"""Exporting in int8: calibration images, quantizers, and the check against float32."""
