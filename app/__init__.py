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
``courier/``    Fetches videos from URLs and delivers callbacks.
``client/``     A client for other services and for the command line.
``programs/``   What runs as which process, and how each is put together; the checks before a start.

Imports point down only, and not sideways between two names of one step:
``libc`` < ``errors failpoints logs memory metrics restarts version wakeups``
< ``storage video detection egress`` < ``pipeline`` < ``host jobs`` < ``web courier engine`` < ``settings``
< ``client`` < ``programs`` < ``cli``.
"""
