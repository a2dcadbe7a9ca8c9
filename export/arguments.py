"""The options of an export, for every command that makes one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from cascade import index
from cascade.config import RUNTIMES, Product, Serving
from cascade.server.threads import default_instances
from cascade.spec import PRERANK, TOPOLOGIES, Precision, Sizes, Weights
from cascade.store import absolute_url
from export.build import Export

BATCH_USERS = 8  # on a CPU: a larger batch gains little and makes all of it wait


def add(parser: argparse.ArgumentParser) -> None:
    """What an export can be told, besides where it reads and where it writes."""
    parser.add_argument("--preranker", default=PRERANK, help="checkpoint to prerank with")
    parser.add_argument(
        "--index",
        metavar="KIND",
        help=f"auto, exact, {', '.join(index.KINDS)}, or a factory string of FAISS, as "
        "HNSW32,SQ8 [auto; exact on cuda]",
    )
    parser.add_argument(
        "--row-order",
        choices=("index", "catalogue"),
        default="index",
        help="of the item states: near items side by side, or as they come [%(default)s]",
    )
    parser.add_argument(
        "--retrieve-from",
        type=Path,
        metavar="REPOSITORY",
        help="take the tower, the index and the order of the rows of this export",
    )
    parser.add_argument(
        "--filter-features",
        type=lambda text: [] if text == "none" else text.split(","),
        metavar="NAME,…|none",
        help="item features that a request may ask for by value [all]",
    )
    parser.add_argument(
        "--deny-list",
        metavar="FILE",
        default=Product.deny_list,
        help="ids that nobody is to get, one per line, read again when it changes; a relative path "
        "begins at the repository [%(default)s]",
    )
    parser.add_argument(
        "--store",
        default=Product.store,
        metavar="URL",
        help="add recommend_user, which reads users by id from here (see cascade/store)",
    )
    parser.add_argument("--recall", type=float, default=0.95, help="target at the candidates")
    parser.add_argument("--runtime", choices=RUNTIMES, default="onnx")
    parser.add_argument(
        "--also",
        choices=("torchscript", "aoti"),
        action="append",
        default=[],
        help="write and prove this form of the graphs, too",
    )
    parser.add_argument("--cuda-graphs", action="store_true", help="replay recorded launches")
    parser.add_argument("--half", action="store_true", help="let TensorRT compute in float16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--topology", choices=TOPOLOGIES, default=Serving.topology)
    parser.add_argument("--state", choices=("auto", *get_args(Precision)), default="auto")
    parser.add_argument("--weights", choices=("auto", *get_args(Weights)), default="auto")
    parser.add_argument("--instances", type=int, help="of each process [by the cores here]")
    parser.add_argument("--threads", type=int, default=0, help="compute threads per process")
    parser.add_argument("--users-per-run", type=int, help="users computed at once [measured]")
    parser.add_argument("--max-batch-size", type=int, default=Serving.max_batch_size)
    parser.add_argument("--queue-delay-us", type=int, default=Serving.queue_delay_us)
    parser.add_argument("--batch-users", type=int, help="that close a batch [8; any on cuda]")
    parser.add_argument(
        "--max-queue-size",
        type=int,
        default=Serving.max_queue_size,
        help="users that may wait for a model [%(default)s; 0 = any number]",
    )
    for name, size in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=size)
    choice = parser.add_argument_group("choice among the ranked")
    choice.add_argument("--pool", type=int, default=0, help="ranked items to choose from [off]")
    choice.add_argument("--diversity", type=float, default=0.0, help="0 to 1 [%(default)s]")
    choice.add_argument("--explored", type=int, default=0, help="last places drawn by chance")
    choice.add_argument("--temperature", type=float, default=1.0, help="of the draws")
    parser.add_argument("--ranker-onnx", type=Path, help="rank with this flat ONNX file instead")
    parser.add_argument("--inputs", type=Path, help="its inputs, as JSON (see docs)")
    parser.add_argument("--preranker-onnx", type=Path, help="prerank with this flat ONNX file")
    parser.add_argument("--preranker-inputs", type=Path, help="its inputs, as JSON")


def export_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, repository: Path, version: int
) -> Export:
    """The export that was asked for, not yet run.

    Args:
        args: parsed by a parser that `add` was called on, and that knows `checkpoints`.
        repository, version: where it is to write, and under which number.
    """
    if (args.ranker_onnx is None) != (args.inputs is None):
        parser.error("--ranker-onnx and --inputs go together")
    if (args.preranker_onnx is None) != (args.preranker_inputs is None):
        parser.error("--preranker-onnx and --preranker-inputs go together")
    if (args.ranker_onnx or args.preranker_onnx) and args.runtime not in ("onnx", "tensorrt"):
        parser.error("a third-party ONNX file is served by --runtime onnx or tensorrt")
    if message := _unfit(args):
        parser.error(message)
    if args.batch_users is None:
        args.batch_users = 0 if args.device == "cuda" else BATCH_USERS
    if args.index is None:
        args.index = "exact" if args.device == "cuda" else "auto"
    try:
        store = absolute_url(args.store)
    except ValueError as error:
        parser.error(str(error))
    serving = Serving(
        instances=args.instances or default_instances(args.topology),
        runtime=args.runtime,
        device=args.device,
        max_batch_size=args.max_batch_size,
        queue_delay_us=args.queue_delay_us,
        batch_users=args.batch_users,
        max_queue_size=args.max_queue_size,
        topology=args.topology,
        threads=args.threads,
        cuda_graphs=args.cuda_graphs,
        half=args.half,
        users_per_run=args.users_per_run or 0,
    )
    product = Product(
        deny_list=args.deny_list,
        store=store,
        pool=args.pool,
        diversity=args.diversity,
        explored=args.explored,
        temperature=args.temperature,
    )
    sizes = Sizes(args.candidates, args.survivors, args.results)
    args = argparse.Namespace(**{**vars(args), "repository": repository, "version": version})
    return Export(args, sizes, serving, product)


def _unfit(args: argparse.Namespace) -> str:
    """What is wrong with the choice among the ranked."""
    if not args.pool:
        return "--diversity and --explored need a --pool" if args.diversity or args.explored else ""
    if not args.results <= args.pool <= args.survivors:
        return (
            f"--pool {args.pool}: expected {args.results} (results) to {args.survivors} (survivors)"
        )
    if not (0 <= args.diversity <= 1 and 0 <= args.explored <= args.results):
        return "--diversity is from 0 to 1, --explored from 0 to the results"
    return "" if args.temperature > 0 else "--temperature is positive"
