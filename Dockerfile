# The service of lesson 44. Builds without a network, once the base image is there, from a folder `wheels` that was filled before on a machine with one
# (Linux with Python 3.11, or the wheels do not fit; take torch for the CPU alone, as the usual one brings gigabytes for GPUs):
#   pip wheel . --no-deps --wheel-dir wheels
#   pip download --dest wheels --constraint constraints.txt "$(ls wheels/miniai-*.whl)[serve]"
#   docker build --network none --tag miniai-serve .
#   docker run --rm --publish 127.0.0.1:8000:8000 --volume miniai-data:/home/serve/data miniai-serve
ARG PYTHON=python:3.11-slim
FROM ${PYTHON}
RUN useradd --create-home --uid 1000 serve && mkdir /home/serve/data && chown serve /home/serve/data
COPY wheels /wheels
RUN python -m pip install --no-cache-dir --no-index --find-links /wheels "miniai[serve]"
USER serve
WORKDIR /home/serve
ENV OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
VOLUME /home/serve/data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["miniai-serve", "--host", "0.0.0.0", "--port", "8000", "--journal", "/home/serve/data/journal"]
