# A Docker engine of its own in a container: the one of this machine is never restarted by a test.
FROM debian:trixie-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io docker-cli docker-compose iptables ca-certificates procps >/dev/null \
    && rm -rf /var/lib/apt/lists/*
VOLUME /var/lib/docker
CMD ["sleep", "infinity"]
