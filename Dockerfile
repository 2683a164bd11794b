# docker build --target router|executor|all .
#
# router:   numpy and onnxruntime; no torch, no shell, no package manager.
# executor: torch from PyPI, with CUDA. For a machine without one:
#           --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
# all:      both services in one container.
#
# A server listens on loopback unless it has TLS, in a container too: give it a certificate and
# --host 0.0.0.0, as deploy/compose.yaml does, or the host's network. Of `all` only the router is to be
# reached: MOLORA_ROUTER_HOST=0.0.0.0, MOLORA_ROUTER_TLS_CERT, _TLS_KEY and _TOKENS_FILE.

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# Its Python is the one of the image that it is copied to.
FROM python:3.11-slim-bookworm AS router-packages
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --target /app "$(echo /wheels/molora-*.whl)[router]"
RUN mkdir /audit

FROM gcr.io/distroless/python3-debian12 AS router
COPY --from=router-packages /app /app
# A named volume takes its owner from here.
COPY --from=router-packages --chown=10001:10001 /audit /audit
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1
USER 10001
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python3", "-m", "service_chassis.probe", "127.0.0.1:50051"]
ENTRYPOINT ["python3", "-m", "clients.cli.app", "serve", "router"]

FROM python:3.12-slim AS torch
ENV PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home molora
WORKDIR /home/molora
ARG TORCH_INDEX
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "torch>=2.11"

FROM torch AS executor
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/molora-*.whl)[executor]"
USER 10001
EXPOSE 50052 9465
HEALTHCHECK --interval=10s --timeout=10s --start-period=900s --retries=3 \
    CMD ["python3", "-m", "service_chassis.probe", "127.0.0.1:50052"]
ENTRYPOINT ["python3", "-m", "clients.cli.app", "serve", "executor"]

FROM torch AS all
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/molora-*.whl)[executor,router,web]"
USER 10001
EXPOSE 50051 50052 9464 9465
HEALTHCHECK --interval=10s --timeout=10s --start-period=900s --retries=3 \
    CMD ["python3", "-m", "service_chassis.probe", "127.0.0.1:50051"]
ENTRYPOINT ["python3", "-m", "clients.cli.app", "serve", "all"]
