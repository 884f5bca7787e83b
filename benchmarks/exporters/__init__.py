"""Models as people export them, made by the exporters themselves: see README.md. No part of the service."""
