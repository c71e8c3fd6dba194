# Two targets: `worker` (the default) and `api`. Each has the dependencies of its program only.
# docker-compose.yml passes the base image by its digest. `docker build --build-arg PYTHON_IMAGE=NAME@sha256:…` does so too.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS environment
WORKDIR /app
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv
COPY pyproject.toml README.md LICENSE ./
COPY geoprocessing-worker geoprocessing-worker
COPY geo_jobs_api geo_jobs_api
COPY geo_jobs_common geo_jobs_common
COPY local_stack local_stack

# Installed as editable, so that the scripts work at their fixed paths. Neither target has the embedded database, since
# PostgreSQL has its own container. Also omitted are build tools, tests of libraries, and Pygments, which rich needs for
# highlighted source code only.
FROM environment AS worker-environment
COPY requirements-worker.txt ./
RUN /opt/venv/bin/pip install --quiet --require-hashes -r requirements-worker.txt \
 && /opt/venv/bin/pip install --quiet --no-deps --no-build-isolation --editable . \
 && /opt/venv/bin/pip uninstall --quiet --yes pygments setuptools \
 && /opt/venv/bin/pip uninstall --quiet --yes pip \
 && find /opt/venv -type d -name tests -prune -exec rm -r {} + \
 && rm -rf build

FROM environment AS api-environment
COPY requirements-api.txt ./
RUN /opt/venv/bin/pip install --quiet --require-hashes -r requirements-api.txt \
 && /opt/venv/bin/pip install --quiet --no-deps --no-build-isolation --editable . \
 && /opt/venv/bin/pip uninstall --quiet --yes pygments setuptools \
 && /opt/venv/bin/pip uninstall --quiet --yes pip \
 && rm -rf build

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin worker \
 && install -d -o worker -g worker -m 0700 /data
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER worker
VOLUME /data
STOPSIGNAL SIGTERM

FROM runtime AS api
COPY --from=api-environment /opt/venv /opt/venv
COPY --from=api-environment /app /app
ENV DATA_DIR=/data/api
EXPOSE 8000
# Exec form, so that signals reach the program.
CMD ["geo-jobs-api", "serve"]

FROM runtime AS worker
COPY --from=worker-environment /opt/venv /opt/venv
COPY --from=worker-environment /app /app
COPY health_check.py /app/
ENV TEMP_DIR=/data/jobs LOG_FILE=/data/worker.log
HEALTHCHECK --interval=30s --timeout=15s --start-period=20s CMD ["python", "health_check.py"]
CMD ["python", "geoprocessing-worker/worker.py"]
