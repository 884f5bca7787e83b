"""Sends a video to an instance, from the command line."""

from __future__ import annotations

import sys
from argparse import Namespace

from app.client.framebox import Framebox, Refused
from app.programs.address import Address
from app.settings import Settings


def detect(settings: Settings, chosen: Namespace) -> int:
    """Write the answer to standard output. Return 1 if there is none."""
    url = chosen.url or Address.of(settings).url
    options = dict(option.split("=", 1) for option in chosen.option)
    try:
        with Framebox(url).detect(chosen.video, **options) as answer:
            for chunk in answer.chunks():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if not answer.complete:
                sys.stderr.write(f"framebox: frames are missing: see {url}/v1/jobs/{answer.job_id}\n")
    except (Refused, OSError) as fault:
        sys.stderr.write(f"framebox: {fault}\n")
        return 1
    return 0
