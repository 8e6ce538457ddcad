# The prediction server: one C++ program with the libraries of TensorFlow, without Python. From the root
# of the repository:
#   docker build -t tfdist-server -f docker/serving.Dockerfile .
#   docker run -p 127.0.0.1:8501:8501 -v "$PWD/models/ratings:/models/ratings:ro" tfdist-server /models/ratings
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# Any build of TensorFlow, such as one with GPUs.
ARG TENSORFLOW="tensorflow-cpu>=2.21,<3"
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake g++ libboost-dev libsimdjson-dev libtcmalloc-minimal4 \
      make python3-pip \
 && rm -rf /var/lib/apt/lists/*
# Only its libraries and headers are used, so it needs no other package. The argument bounds the version.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --no-deps --target /opt/tensorflow "${TENSORFLOW}"
COPY tfdist/serving/cpp /src
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN cmake -S /src -B /build -DTENSORFLOW_DIR=/opt/tensorflow/tensorflow \
 && cmake --build /build --parallel \
 && ldd /build/tfdist-server | awk '/simdjson|tcmalloc/ {print $3}' | xargs cp -L -t /opt/tensorflow/tensorflow

FROM ${BASE}
# The server looks for its libraries in this folder.
COPY --from=build /opt/tensorflow/tensorflow/*.so.* /opt/tensorflow/tensorflow/
COPY --from=build /build/tfdist-server /usr/local/bin/
RUN groupadd --gid 10001 tfdist \
 && useradd --uid 10001 --gid 10001 --no-log-init --home-dir / --shell /usr/sbin/nologin tfdist
ENV TF_CPP_MIN_LOG_LEVEL=2
USER 10001:10001
EXPOSE 8501
HEALTHCHECK --interval=10s --timeout=10s --start-period=1m --retries=3 CMD ["bash", "-c", \
  "exec 3<>/dev/tcp/127.0.0.1/8501; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; read -r _ code _ <&3; [ \"$code\" = 200 ]"]
# All addresses of the container; -p decides which machines reach it.
ENTRYPOINT ["tfdist-server", "--host", "0.0.0.0"]
CMD ["--help"]
