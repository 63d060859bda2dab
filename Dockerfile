# docker build -t distmlp .
# mkdir -p runs
# docker run --gpus=all --user="$(id -u)" -v "$PWD/runs:/runs" distmlp train 1gpu.flags --workdir=/runs/run1
# For a machine without GPUs: docker build --build-arg=EXTRA=report -t distmlp .
FROM python:3.12-slim
ARG EXTRA=cuda

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 HOME=/home/distmlp
RUN useradd --uid=1000 --create-home distmlp && install --directory --owner=distmlp /runs

# The dependencies change seldom, and take long: a layer of their own, which an edit of the code leaves as it is.
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
RUN mkdir distmlp launch && touch distmlp/__init__.py launch/__init__.py \
    && pip install ".[$EXTRA]" && pip uninstall --yes distmlp && rm -r distmlp launch build ./*.egg-info

COPY configs configs
COPY distmlp distmlp
COPY launch launch
RUN pip install --no-deps . && rm -r /source

USER distmlp
WORKDIR /runs
# By exec, so that signals reach it.
ENTRYPOINT ["distmlp"]
CMD ["--help"]
