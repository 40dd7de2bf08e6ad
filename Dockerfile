# distwsss on a CPU. Not built and not run yet; launchers/docker/Dockerfile is the image for CUDA machines.
#   docker build -t distwsss .
#   docker run --rm --init --shm-size 2g -v "$PWD:/work" distwsss run --config mine.yaml
# --shm-size: loader workers hand batches over in /dev/shm, of which Docker gives 64 MB. With less they use slower pipes.
FROM python:3.12-slim
# a compiler for pydensecrf2, where no wheel of it fits
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /distwsss
COPY pyproject.toml setup.cfg setup.py MANIFEST.in README.md LICENSE ./
COPY distwsss distwsss
COPY configs configs
RUN pip install --no-cache-dir torch torchvision && pip install --no-cache-dir .
WORKDIR /work
ENTRYPOINT ["distwsss"]
