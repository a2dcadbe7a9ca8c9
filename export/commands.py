"""The commands that compute a release or write users: build, plan, publish, catalogue, users,
flat."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cascade.artifact import ArtifactError
from cascade.encoding import Encoder
from cascade.files import write_json
from cascade.spec import RANK
from cascade.store import UserStore
from cascade.telling import say
from cascade.training import checkpoint
from export import arguments
from export import users as user_files
from export.build import write_release
from export.foreign.flat import flat_onnx
from export.planning.grid import CANDIDATES, SURVIVORS, PlanError, Tried
from export.planning.plan import KEEP, LEAST_USERS, USERS, Asked
from export.planning.release import PICTURE, PLAN_FILE, write_plan, write_planned
from export.planning.report import report as report_plan
from export.releases.commands import add_server, add_signing, parser, publisher, report
from export.releases.items import read_ids, read_items
from export.releases.refresh import Refresh, change
from export.releases.repository import Repository
from export.releases.rewire import from_export


def build(argv: Sequence[str]) -> None:
    """Write one release: checkpoints in, a version of every model of the repository out."""
    required = "--repository DIR (--checkpoints DIR | --cascade FILE)"
    options = parser("build", required, build.__doc__)
    arguments.add_places(options)
    arguments.add(options)
    args = options.parse_args(argv)
    if args.keep is not None and not args.sizes:
        raise PlanError("--keep says what planned sizes keep: give --sizes auto with it")
    asked = Asked(KEEP if args.keep is None else args.keep)
    export = arguments.build_of(args, args.repository, args.version)
    if args.sizes:
        write_planned(export, asked)
    else:
        write_release(export)


def plan(argv: Sequence[str]) -> None:
    """Plan the sizes: what each keeps of the ranker's own best, what it costs, and the cheapest
    that keeps enough.

    Exports the checkpoints into a temporary folder, as build would, and asks it in every size: the
    candidates, the survivors, and the search effort of the index where it has one. The default that
    the others are compared with is that of --candidates and --survivors. Writes plan.json and
    plan.png; python -m export build --sizes auto --keep X plans and exports.
    """
    options = parser("plan", "--out DIR (--checkpoints DIR | --cascade FILE)", plan.__doc__)
    add = options.add_argument
    add("--checkpoints", type=Path, metavar="DIR", help="what training wrote")
    add("--cascade", type=Path, metavar="FILE", help="or a cascade.yaml: docs/your-models.md")
    add("--out", type=Path, metavar="DIR", required=True, help="folder of plan.json and plan.png")
    add("--keep", type=float, default=KEEP, metavar="X", help="of the best [%(default)s]")
    limits = f"[{USERS}; fewer, down to {LEAST_USERS}, where the ranker takes long]"
    add("--users", type=int, metavar="N", help=f"asked, at random {limits}")
    for name, sizes in (("candidates", CANDIDATES), ("survivors", SURVIVORS)):
        text = f"[{' '.join(map(str, sizes))}]"
        add(f"--try-{name}", type=int, nargs="+", default=sizes, metavar="N", help=text)
    arguments.add(options, hidden=True)
    args = options.parse_args(argv)
    tried = Tried(args.try_candidates, args.try_survivors)
    asked = Asked(args.keep, args.users, tried)
    args.repository = args.out
    found = write_plan(arguments.build_of(args, args.out, 1), asked, args.out)
    print(report_plan(found))
    print(f"wrote {args.out / PLAN_FILE} and {args.out / PICTURE}")


def publish(argv: Sequence[str]) -> None:
    """Make the next release and let the server answer with it, while requests keep flowing.

    Exports the checkpoints beside the live release, or copies an export made elsewhere; loads it,
    asks it the canary requests, and switches. If anything fails, the live release stays. The server
    runs under explicit model control, as python -m cascade.server starts it. Without --url only the
    repository changes, for a server that is started later.
    """
    required = "--repository DIR (--checkpoints DIR | --cascade F | --release DIR)"
    options = parser("publish", required, publish.__doc__)
    add_server(options)
    origin = options.add_mutually_exclusive_group(required=True)
    origin.add_argument("--checkpoints", type=Path, metavar="DIR", help="export these")
    origin.add_argument("--cascade", type=Path, metavar="FILE", help="export what it describes")
    origin.add_argument("--release", type=Path, metavar="DIR", help="copy this repository's newest")
    options.add_argument("--share", type=float, help="of the users that get it [all]")
    add_signing(options)
    arguments.add(options, hidden=True)
    args = options.parse_args(argv)

    def make(target: Path, number: int) -> None:
        write_release(arguments.build_of(args, target, number))

    source = from_export(args.release) if args.release else make
    report(publisher(args).publish(source, args.share))


def catalogue(argv: Sequence[str]) -> None:
    """Publish a release with the models of the live one and another catalogue.

    New items come from a Parquet file (item_id and the raw features by name), the ids of items that
    leave from a text file, one per line. A new item replaces one with the same id, and keeps its
    past where the file has no past_item_ columns. Only what changed is computed; the index keeps
    its lists, so after large changes python -m export publish retrieves better.
    """
    required = "--repository DIR --checkpoints DIR (--add FILE | --remove FILE)"
    options = parser("catalogue", required, catalogue.__doc__)
    add_server(options)
    add = options.add_argument
    add("--checkpoints", type=Path, metavar="DIR", required=True, help="of the live release")
    add("--add", type=Path, metavar="FILE", help="Parquet file of new items")
    add("--remove", type=Path, metavar="FILE", help="text file of item ids")
    add_signing(options)
    args = options.parse_args(argv)
    if args.add is None and args.remove is None:
        raise ArtifactError("nothing to change: give --add, --remove or both")
    repository = Repository(args.repository)
    repository.check_published()

    def make(target: Path, number: int) -> None:
        live = repository.live
        assert live is not None
        refresh = Refresh(repository.root, live, args.checkpoints)
        added = read_items(args.add, refresh.encoder, args.checkpoints)
        removed = read_ids(args.remove, refresh.schema.string_ids)
        changed = change(refresh.item_ids, added, removed)
        say(f"{(~changed.keep).sum():,} items leave, {len(added):,} come")
        refresh.write(target, number, changed)

    report(publisher(args).publish(make))


def users(argv: Sequence[str]) -> None:
    """Write raw users into the store that a repository reads.

    A .parquet table has one user per row and columns named by feature, as in the training data; a
    .jsonl file has users as clients send them. A user is replaced as a whole. --replace also
    removes the users that are not in the table, and takes over a store that was written for other
    features; until a user is rewritten, it counts as a cold start.
    """
    options = parser("users", "--repository DIR --table FILE", users.__doc__)
    add = options.add_argument
    add("--repository", type=Path, metavar="DIR", required=True, help="says the features")
    add("--store", metavar="URL", help="[the one that the repository reads]")
    add("--table", type=Path, metavar="FILE", required=True, help="users.parquet or users.jsonl")
    add("--id-column", default="user_id", metavar="NAME", help="[%(default)s]")
    add("--row-ids", action="store_true", help="ids are the row numbers: a table without ids")
    add("--replace", action="store_true", help="remove the users that are not in the table")
    args = options.parse_args(argv)
    layout = user_files.layout_of(args.repository)
    kind = user_files.Lines if args.table.suffix == ".jsonl" else user_files.Table
    table = kind(args.table, layout, None if args.row_ids else args.id_column)
    if table.absent:
        print(f"no such column, stored as missing: {', '.join(table.absent)}", file=sys.stderr)
    url = args.store or user_files.store_of(args.repository)
    with UserStore.create(url, layout, args.replace) as store:
        written, removed = user_files.write(table, store, args.replace)
        print(f"{store.url}: {written:,} users written, {removed:,} removed")


def flat(argv: Sequence[str]) -> None:
    """Export a ranker as a third party would: one ONNX file over flat (user, item) rows.

    Serve it with python -m export build --ranker-onnx FILE --inputs FILE.
    """
    options = parser("flat", "--checkpoints DIR --onnx FILE --inputs FILE", flat.__doc__)
    add = options.add_argument
    add("--checkpoints", type=Path, metavar="DIR", required=True, help="what training wrote")
    add("--ranker", default=RANK, metavar="NAME", help="checkpoint to export [%(default)s]")
    add("--onnx", type=Path, metavar="FILE", required=True, help="file to write")
    add("--inputs", type=Path, metavar="FILE", required=True, help="JSON file to write")
    args = options.parse_args(argv)
    schema = Encoder.load(args.checkpoints).schema
    scorer = checkpoint.load(args.checkpoints / args.ranker, schema)
    write_json(args.inputs, flat_onnx(scorer, schema, args.onnx))
    print(f"wrote {args.onnx} and {args.inputs}")
