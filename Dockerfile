# One image for every part; what a container runs is its command (compose.yaml).
FROM python:3.11-slim-bookworm
WORKDIR /opt/strandline
COPY strandline/host_packages.py strandline/host_packages.py
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssl $(python strandline/host_packages.py --for oci | tr '\n' ' ') \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
VOLUME /state
CMD ["strandline", "--help"]
