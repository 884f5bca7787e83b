"""Frames to boxes: the Detector protocol, the detectors, and the device's owner thread."""
