"""File to frames: index, segments, and the decoder child that alone opens a video."""
