"""Bytes on disk: the data folder, the spool of uploads, durable writes. Never HTTP, never video."""
