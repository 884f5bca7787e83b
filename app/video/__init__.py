"""File to frames: index, segments, and the decoder process that alone opens a video.

``child/``     Runs only in the locked-down decoder process: FFmpeg (``av``) and all that parses a video.
``protocol/``  What the two sides say to each other, and the memory that they share. No ``av``, no parser.
``source.py``  What the pipeline sees of all this: a FrameSource. ``decoder.py`` holds the one there is.

The other modules here are the host's side. They start decoder processes and check all that these say; they
load neither ``child/`` nor ``av``. Imports: ``protocol`` < ``child``, and ``protocol`` < the host's side.
"""
