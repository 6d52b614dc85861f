# For a build that is the same bit for bit, give the base by digest too: --build-arg DIGEST=@sha256:…
ARG TAG=3.13-slim
ARG DIGEST=

FROM python:${TAG}${DIGEST} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
WORKDIR /source
RUN python -m venv /opt/build && python -m venv --without-pip /opt/keyturn
COPY requirements/image.txt requirements/build.txt requirements/
# Hashes are checked, and nothing is compiled from source: what has no wheel for this platform stops the build.
# Behind an index of your own: --secret id=pip,src=pip.conf, and --secret id=ca,src=ca.pem with `cert = /run/secrets/ca`.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/secrets/ca \
    /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt \
 && /opt/build/bin/pip --python /opt/keyturn/bin/python install --require-hashes --only-binary :all: -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY proxy proxy
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/build/bin/pip --python /opt/keyturn/bin/python install --no-deps --no-index dist/*.whl \
 && /opt/keyturn/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/keyturn/lib

FROM python:${TAG}${DIGEST}
# The base brings pip for those who want to add to it; this image is finished.
RUN python -B -m pip uninstall --yes --no-cache-dir --root-user-action ignore pip \
 && rm -rf /usr/local/lib/python3.*/ensurepip /root/.cache
COPY --from=build /opt/keyturn /opt/keyturn
# The base's standard library comes without bytecode, and nobody writes any later: half of a start's time.
RUN /opt/keyturn/bin/python -c "import keyturn.app, keyturn.cli"
ENV PATH=/opt/keyturn/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /etc/keyturn
USER 10001:10001
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["keyturn"]
CMD ["serve", "-c", "/etc/keyturn/config.yaml"]
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Keyturn" \
      org.opencontainers.image.description="An authenticating, rate-limit-aware reverse proxy for the Postman API." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
