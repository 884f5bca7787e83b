"""Framebox: a video goes in, one JSON holding the boxes of every frame comes out.

Follow a video from the socket to the answer:

``web/``        HTTP in, HTTP out. Knows Flask; never torch, never a codec.
``storage/``    Bytes on disk: the data folder, the spool, durable writes. Never HTTP, never video.
``jobs/``       A request's life across restarts: the record and its states.
``engine/``     What runs next, and where; it watches the hosts. Never torch, never a codec.
``host/``       The process of one device: it holds models, owns decoders, and makes parts.
``pipeline/``   One video to one document; read ``pipeline/detect_video.py`` first.
``video/``      File to frames: index, segments, the sandboxed decoder child.
``detection/``  Frames to boxes: the Detector protocol, the detectors, the device's owner thread.
``egress/``     Requests to other servers: which addresses, over which connections.
``courier/``    Fetches videos that a request names by URL, and tells callers' servers that jobs ended.
``client/``     A client for other services and for the command line.

Imports point down only, and not sideways between two names of one step:
``errors logs log_lines metrics memory processes failpoints restarts version wakeups``
< ``storage video detection egress`` < ``pipeline`` < ``host jobs`` < ``web courier engine`` < ``settings``
< ``factory engine_factory courier_factory nginx preflight health client supervision``
< ``programs`` < ``cli``.
What runs as which process: ``cli.py`` and ``programs.py``; who builds what: ``factory.py``,
``engine_factory.py`` and ``courier_factory.py``.
"""
