"""The cascade behind PyTriton's own serving: a function around the pipeline, bound to a model.

    python -m perf.contenders.pytriton_server --repository DIR --http-port 8000 --grpc-port 8001

PyTriton starts a tritonserver whose Python backend passes each batch to this process, where every
bound function has a thread. Two or more of them share one interpreter: they overlap while NumPy,
FAISS and ONNX Runtime compute. The model is `recommend` with the tensors of the exported one.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cascade.release import newest_version, read_sizes
from cascade.server.arguments import HTTP_THREADS
from cascade.server.threads import cores
from cascade.spec import stages
from perf.bound import configs, open_pipeline

READY = "PyTriton serves"
DTYPES: dict[str, Any] = {"FP32": np.float32, "INT64": np.int64, "BYTES": np.bytes_}


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM."""
    # Where PyTriton is not what runs, nobody should need it, nor wait for its import.
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the `with` block ends it
    release, _ = configs(options.repository)
    pipelines = [open_pipeline(options.repository) for _ in range(options.instances or cores())]
    sizes = read_sizes(options.repository, newest_version(options.repository))
    first, *_, last = stages(pipelines[0].schema, sizes)
    server = TritonConfig(
        http_address="127.0.0.1",
        http_port=options.http_port,
        http_thread_count=HTTP_THREADS,
        grpc_address="127.0.0.1",
        grpc_port=options.grpc_port,
        allow_metrics=False,
    )
    with Triton(config=server) as triton:
        triton.bind(
            model_name="recommend",
            infer_func=[_function(pipeline) for pipeline in pipelines],
            inputs=[
                Tensor(name=t.name, dtype=DTYPES[t.dtype], shape=t.dims)
                for t in first.inputs
                if not t.optional
            ],
            outputs=[
                Tensor(name=t.name, dtype=DTYPES[t.dtype], shape=t.dims) for t in last.outputs
            ],
            config=ModelConfig(
                max_batch_size=release.max_batch_size or 64, batcher=DynamicBatcher()
            ),
        )
        triton.run()
        print(
            f"{READY} on http port {options.http_port}, grpc port {options.grpc_port}", flush=True
        )
        signal.pause()


def _function(pipeline: Any) -> Any:
    from pytriton.decorators import batch

    @batch  # type: ignore[untyped-decorator]
    def recommend(dense: Any, categorical: Any) -> dict[str, Any]:
        item_ids, scores = pipeline(dense, categorical.astype(object))
        return {"item_ids": item_ids, "scores": scores}

    return recommend


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.contenders.pytriton_server")
    parser.add_argument("--repository", type=Path, required=True, help="exported model repository")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--instances", type=int, help="functions to bind [one per core]")
    return parser


if __name__ == "__main__":
    main()
