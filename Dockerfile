# The demo in a container: docker build -t kdcli . && docker run --rm -v "$PWD/runs:/work/runs" kdcli distill --out runs/demo
# With a GPU: docker build --build-arg BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime -t kdcli .
# Neither has been built by kdcli's own tests, which have no registry of images.
ARG BASE=python:3.12-slim
FROM ${BASE}
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY kdcli kdcli
COPY conf conf
RUN pip install --no-cache-dir -c constraints.txt '.[demo]'
ENV KDCLI_CACHE_DIR=/work/cache
WORKDIR /work
ENTRYPOINT ["kdcli"]
CMD ["--help"]
