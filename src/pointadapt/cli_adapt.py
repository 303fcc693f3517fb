"""``pointadapt adapt``: its flags are made from the fields of ``Run`` and of the method's config."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

from pointadapt.cli_init import look
from pointadapt.cli_tools import copied, with_hints
from pointadapt.errors import UserError
from pointadapt.kinds import KINDS, kind_of
from pointadapt.run import Run, option

#: Fields of Run that are flags: a method's options have flags of their own, the kind of data is in dataset.yaml.
RUN_FLAGS = [f.name for f in dataclasses.fields(Run) if f.name not in ("options", "kind")]


@dataclass
class Adapt:
    """Train an adapter and a head on a folder of labelled scans, shapes or videos.

    Options of a method are flags too: pointadapt adapt --method gem --help shows them as --method.rank and so on.
    """

    def run(self) -> None:
        from pointadapt.analysis.describe import result_table, show
        from pointadapt.train import train

        run, flags = self.settings(), vars(self)
        if look(run.data, run.backbone):
            run = self.settings()  # the kind of data is known now
        try:
            result = train(run, resume=flags["resume"], overwrite=flags["overwrite"])
        except KeyboardInterrupt:
            if (run.folder / "state").is_dir():
                print(f"go on with: pointadapt adapt {run.data} --out {run.folder} --resume", file=sys.stderr)
            raise
        if os.environ.get("RANK", "0") == "0":  # one of several processes
            show(result_table(result))
            print(f"score it with: pointadapt evaluate {run.folder}")
            print(f"label a file with: pointadapt predict {run.folder} FILE")

    def settings(self) -> Run:
        """The Run that the flags say; with --resume, the run's own settings with the flags given on top."""
        given = {k: v for k, v in changed(self).items() if k in RUN_FLAGS}
        method_options = getattr(self, "method_options", None)
        if method_options is not None:
            default = KINDS[kind_of(given["data"])].recipe["method"]
            used = type(method_options).__name__
            if "method" not in given and used != default:  # the kind of data was not known yet
                raise UserError(
                    f"{given['data']} is for method {default} unless you name another: its options need --method NAME"
                )
            given |= {"method": used, "options": changed(method_options)}
        run = Run(**given)
        if not vars(self)["resume"]:
            return run
        return dataclasses.replace(Run.load(run.folder), **{k: v for k, v in given.items() if k != "out"})


def changed(values: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that differ from their defaults."""

    def default(f: dataclasses.Field) -> Any:
        return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()

    return {
        f.name: getattr(values, f.name) for f in dataclasses.fields(values) if getattr(values, f.name) != default(f)
    }


def adapt_command(arguments: list[str]) -> type:
    """Adapt with a flag per field of Run, and one per option of the method named on the command line.

    Only then are the methods (and peft, which is slow to import) loaded.
    """
    hints = get_type_hints(Run)
    flags: list[Any] = [
        (f.name, hints[f.name] | None if f.default is None else hints[f.name], copied(f))
        for f in dataclasses.fields(Run)
        if f.name in RUN_FLAGS
    ]
    flags.append(("resume", bool, option(False, "Go on with the run in --out from its last saved state.")))
    flags.append(("overwrite", bool, option(False, "Start afresh in a folder that holds a run.")))
    name = method_asked(arguments)
    if name is not None:
        from pointadapt.methods import METHODS, options

        if name not in METHODS:
            raise UserError(f"unknown method {name!r}: use one of {', '.join(METHODS)}")
        known, types = options(METHODS[name]), get_type_hints(METHODS[name])
        if not methods_named(arguments):
            check_options(name, {f.name for f in known}, arguments)
        fields = [(f.name, types[f.name], copied(f)) for f in known]
        config = with_hints(make_dataclass(name, fields, namespace={"__doc__": f"Options of {name}."}))
        kind = Annotated[config, tyro.conf.arg(name="method")]  # type: ignore[valid-type]
        flags.append(("method_options", kind, field(default_factory=config)))
    return make_dataclass("Adapt", flags, bases=(Adapt,), namespace={"__doc__": Adapt.__doc__})


def methods_named(arguments: list[str]) -> list[str]:
    """What ``--method`` says."""
    named = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--method"]
    return named + [a.removeprefix("--method=") for a in arguments if a.startswith("--method=")]


def method_asked(arguments: list[str]) -> str | None:
    """The method whose options must be known to read these arguments, or None."""
    if arguments[:1] != ["adapt"]:
        return None
    named = methods_named(arguments)
    has_options = any(a.startswith("--method.") for a in arguments)
    if has_options or (named and {"-h", "--help"} & set(arguments)):
        data = next((a for a in arguments[1:2] if not a.startswith("-")), "")
        return named[-1] if named else KINDS[kind_of(data)].recipe["method"]
    return None


def check_options(method: str, known: set[str], arguments: list[str]) -> None:
    """Raises UserError for an option that a method which nobody named does not have."""
    for flag in (a.partition("=")[0] for a in arguments if a.startswith("--method.")):
        name = flag.removeprefix("--method.").replace("-", "_")
        if not {name, name.removeprefix("no_")} & known:
            raise UserError(
                f"{flag} is no option of {method}, the method unless you name another: give --method NAME as well "
                "(pointadapt methods NAME lists its options)"
            )
