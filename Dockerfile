# civicsky without the local model: it wants an OpenAI-compatible server.
# docs/operations.md#as-a-container says how to build and run it.

# A tag moves. Whoever wants the same bytes again names its digest: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The build's own tools, pip among them, stay in an environment of their own, out of the image.
COPY requirements/build.txt requirements/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements/build.txt
# More than the service: export, research or both. The lists agree with one another.
# nkeys, for NATS's credentials files, comes as source only and is left out: here NATS is told a password or a token.
# The local model's engine wants libgomp1, which slim images lack: a server beside this one is the way here.
ARG EXTRAS=""
COPY requirements/base.txt requirements/fast.txt requirements/nats.txt requirements/export.txt requirements/research.txt requirements/
RUN python -m venv --without-pip /opt/civicsky \
    && sed -i '/^nkeys==/,/[^\\]$/d' requirements/nats.txt \
    && for list in base fast nats ${EXTRAS}; do \
        /opt/build/bin/pip --python /opt/civicsky/bin/python install --require-hashes --only-binary :all: \
            -r "requirements/$list.txt" || exit 1; \
    done
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/civicsky/bin/python install --no-deps --no-index /dist/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="civicsky" \
    org.opencontainers.image.description="Holds Bluesky's firehose for months, labels its English posts as civic or not, and can prove what it saw." \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="MIT"
# A fixed number, so that the owner of a volume's files is known outside, too.
RUN groupadd --gid 10001 civicsky \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --no-log-init --shell /usr/sbin/nologin civicsky \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/civicsky /opt/civicsky
# Nothing is written but /data and /tmp: what libraries keep in a home (matplotlib's fonts) is for a moment only. What
# SQLite puts aside while it sorts may be larger than a /tmp in memory.
ENV PATH=/opt/civicsky/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=2 \
    HOME=/tmp \
    SQLITE_TMPDIR=/data \
    CREDENTIALS_DIRECTORY=/run/secrets \
    CIVICSKY_DATA_DIR=/data \
    CIVICSKY_HTTP__LISTEN=127.0.0.1:9464
USER 10001:10001
WORKDIR /data
VOLUME /data
# The event loop turns, whatever the relay, the model and the store do: those are for alerts, not for a restart.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["civicsky", "health", "--live"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["civicsky"]
CMD ["run"]
