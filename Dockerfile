# Not tested yet.
#
#   docker build -t kin .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" -w /data kin translate slide.svs
#
# kin writes beside its output and to /tmp only, never to $HOME, and downloads nothing when it runs.
FROM python:3.11-slim
WORKDIR /opt/kin
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY examples examples
COPY scripts/wheel scripts/wheel
COPY kin_cli kin_cli
# The kernels of a GPU are compiled at first use.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir -c constraints.txt .
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
# The exec form: signals reach kin, and not a shell that swallows them.
ENTRYPOINT ["kin"]
