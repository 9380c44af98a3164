# civicsky without the local model: it wants an OpenAI-compatible server. docs/operations.md says how to run it.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The build's own tools stay in an environment of their own, out of the image.
COPY requirements/build.txt requirements/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements/build.txt
COPY requirements/base.txt requirements/
RUN python -m venv /opt/civicsky && /opt/civicsky/bin/pip install --require-hashes --only-binary :all: -r requirements/base.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/civicsky/bin/pip install --no-deps --no-index /dist/*.whl

FROM python:3.11-slim-bookworm
# A fixed number, so that the owner of a volume's files is known outside, too.
RUN groupadd --gid 10001 civicsky \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin civicsky \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/civicsky /opt/civicsky
ENV PATH=/opt/civicsky/bin:$PATH PYTHONDONTWRITEBYTECODE=1 MALLOC_ARENA_MAX=2 CIVICSKY_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["civicsky"]
CMD ["run"]
