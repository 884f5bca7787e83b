"""For callers: upload with requests, read an answer of any size with ijson."""
