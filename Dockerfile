# docker build -t shipreid .                           CPU
# docker build -t shipreid --build-arg VARIANT=cuda .  NVIDIA GPUs; run with --gpus all
# --build-arg COMMIT=$(git rev-parse --short=12 HEAD)  makes answers say which commit they come from
ARG VARIANT=cpu

FROM rust:1.95-bookworm AS build
ARG VARIANT
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY scripts scripts
# A layer of its own: the tree changes with its pinned version only.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 scripts/libtorch.py --link libtorch $([ "$VARIANT" = cuda ] && echo --cuda) \
    && mkdir -p /tree && cp -a "$(readlink libtorch)/.." /tree/shipreid
COPY . .
ARG COMMIT=
ENV SHIPREID_COMMIT=$COMMIT
RUN cargo build --release --locked

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/shipreid --create-home shipreid
COPY --from=build /tree/shipreid /usr/local/lib/shipreid
COPY --from=build /src/target/release/shipreid /usr/local/bin/shipreid
COPY configs /etc/shipreid
USER shipreid
WORKDIR /var/lib/shipreid
EXPOSE 50051 9090
# Reached from other machines, so it starts with tls.certificate and tls.key only, or where SHIPREID__SERVER__PLAINTEXT is
# "everywhere" since something in front of it encrypts.
ENV SHIPREID__SERVER__LISTEN=0.0.0.0:50051 SHIPREID__SERVER__METRICS_LISTEN=0.0.0.0:9090
ENTRYPOINT ["/usr/local/bin/shipreid"]
CMD ["serve", "--config", "/etc/shipreid/server.toml"]
