"""One video to one document. Read ``detect_video.py`` first."""
