"""Checks of a container's own chain, for containers that do not list their frames.

Each module reads one container by its specification, next to FFmpeg's demuxer, and reports where the chain
breaks: a demuxer skips damage and goes on, and what it skipped leaves no trace in its packets.
``walker_for`` picks the module. All run in the decoder process: standard library and numpy only.
"""
