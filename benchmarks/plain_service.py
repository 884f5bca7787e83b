"""What somebody would write who serves OpenCV behind Flask and gunicorn: a peer for short videos.

An upload becomes a temporary file, and its answer is ready when the last frame is read. Nothing survives, and
a video that brings OpenCV down takes a worker with it.
"""

from __future__ import annotations

import tempfile

import cv2
from flask import Flask, Response, jsonify, request

_PIECE_BYTES = 64 * 1024

app = Flask(__name__)


@app.post("/v1/detections")
def detect() -> Response:
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        while piece := request.stream.read(_PIECE_BYTES):
            file.write(piece)
        file.flush()
        capture = cv2.VideoCapture(file.name)
        pairs: list[list[object]] = []
        while capture.read()[0]:
            pairs.append([len(pairs), []])
        capture.release()
    return jsonify(pairs)
