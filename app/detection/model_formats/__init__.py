"""The formats in which an administrator can add a model: one module for each, and what a model declares."""
