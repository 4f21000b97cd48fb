# A Docker engine in a container, so that no test restarts the host's engine.
FROM debian:trixie-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io docker-cli docker-compose iptables ca-certificates procps >/dev/null \
    && rm -rf /var/lib/apt/lists/*
VOLUME /var/lib/docker
CMD ["sleep", "infinity"]
