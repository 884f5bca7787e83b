"""File to frames: index, segments, and the decoder process, which is the only one that opens a video.

``child/``     Runs only in the sandboxed decoder process: FFmpeg (``av``) and everything that parses a video.
``protocol/``  The messages between the two sides, and the memory that they share. No ``av``, no parser.
``decoder.py`` What the pipeline sees of all this: the DecoderPool. ``results.py`` holds what it returns.

The other modules are the host's side. They start decoder processes and check everything that these send; they
load neither ``child/`` nor ``av``. Imports: ``protocol`` < ``child``, and ``protocol`` < the host's side.
"""
