"""Checks of a container's own chain, for containers that do not list their frames.

Each module reads one container by its specification, besides FFmpeg's demuxer, and reports where the chain
breaks: a demuxer skips damage and continues, and its packets do not show what it skipped.
``walker_for`` picks the module. All run in the decoder process: standard library and numpy only.
"""
