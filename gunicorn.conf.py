"""gunicorn's settings: HTTP workers on a unix socket, which only nginx uses.

To start gunicorn without ``python -m app web``, set these variables for its process:

    MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TOP_PAD_=16777216
        Bodies are read in large pieces. Without these, glibc maps and unmaps each of them, at half the speed.
    PROMETHEUS_MULTIPROC_DIR=<data folder>/run/metrics/web
        An empty folder at every start of the instance. Set here if it is missing.
"""

import os
import resource
import signal
from pathlib import Path
from typing import Any

from gunicorn.http.unreader import SocketUnreader

from app.logs import standard_logging
from app.metrics import FOLDER_VARIABLE, retire_counters
from app.settings import load_settings
from app.storage.data_folder import DataFolder
from app.web.body import READ_BYTES

_settings = load_settings()
_folder = DataFolder(_settings.data)
_folder.create()
os.environ.setdefault(FOLDER_VARIABLE, str(_folder.metrics / "web"))
Path(os.environ[FOLDER_VARIABLE]).mkdir(mode=0o700, exist_ok=True)

wsgi_app = "app.programs.web:create_app()"
bind = f"unix:{_folder.web_socket}"
umask = 0o077

worker_class = "gthread"
workers = _settings.http_workers
threads = _settings.http_threads
worker_connections = threads + 1000  # the rest are idle connections that nginx keeps

timeout = 60  # of the heartbeat; gthread's requests may take hours
graceful_timeout = 30  # for uploads under way, when the worker is told to stop
keepalive = 75  # longer than nginx keeps an idle connection (60 s): else it would be closed in use
max_requests = 0  # replacing a worker would disconnect waiting clients
preload_app = False
worker_tmp_dir = "/dev/shm"  # noqa: S108 - the heartbeat file, which must not wait for a disk
control_socket_disable = True

logconfig_dict = standard_logging("web", _settings.log_level)

SocketUnreader.max_body_chunk = READ_BYTES  # bytes of a body that one recv takes, and every thread holds

# A thread has a connection to the database (three files), a client, and an upload's two files.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = threads * 8 + 1024
resource.setrlimit(
    resource.RLIMIT_NOFILE, (_wanted if _hard == resource.RLIM_INFINITY else min(_wanted, _hard), _hard)
)


def post_worker_init(worker: Any) -> None:
    """Follow the bodies that nginx writes; answer waiting requests with a 202 when the worker must stop."""
    service = worker.app.wsgi().extensions["framebox"]
    service.follower.start()
    stopping = service.stopping
    handle_exit = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        stopping.set()
        handle_exit(number, frame)

    signal.signal(signal.SIGTERM, stop)


def on_starting(_server: Any) -> None:
    """Retire the counters of earlier processes, which have ended: this master holds the folder's lock."""
    retire_counters()


def child_exit(_server: Any, worker: Any) -> None:
    retire_counters(worker.pid)
