# syntax=docker/dockerfile:1
# One image for the four programs of an instance; docker-compose.yml runs each as a service of its own.
# Without compose the image runs all four under supervisord, as `make serve` does.

FROM python:3.11-slim-bookworm AS packages
# The build of torch: cuda, or cpu for an image without NVIDIA's libraries.
ARG FRAMEBOX_TORCH=cuda
WORKDIR /opt/framebox
COPY requirements.txt requirements-torch-cpu.txt requirements-torch-cuda.txt ./
RUN python -m venv .venv \
    && for lock in "requirements-torch-${FRAMEBOX_TORCH}.txt" requirements.txt; do \
        .venv/bin/python -m pip install --no-cache-dir --no-input --no-deps --require-hashes --requirement "$lock" \
            || exit 1; \
    done

FROM python:3.11-slim-bookworm
# No version of nginx is pinned: Debian keeps only the newest of a release, with its security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nginx \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 framebox \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin framebox \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
WORKDIR /opt/framebox
COPY --from=packages /opt/framebox/.venv .venv
COPY gunicorn.conf.py LICENSE THIRD_PARTY_NOTICES.md ./
COPY deploy/nginx.conf deploy/supervisord.conf deploy/
COPY app app
# Compiled here, because the root file system is read-only when it runs.
RUN .venv/bin/python -m compileall -q app

ENV PATH="/opt/framebox/.venv/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    FRAMEBOX_DATA=/data
USER 10001:10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-m", "app", "health"]
CMD ["python", "-m", "app", "serve"]
