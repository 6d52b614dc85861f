"""The commands, the only code that prints and exits. Each imports its own dependencies, which keeps a server small.

Exit codes: 0 after a clean end, 2 when the configuration or the command line is bad, 1 for anything else.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO

import typer
import uvloop
import yaml

from keyturn import __version__, config
from keyturn.config import Config, LogSettings
from keyturn.config.fields import is_name
from keyturn.core.errors import ConfigError, KeyturnError
from keyturn.core.model import Secret
from keyturn.logger import structlog
from keyturn.telemetry import LogWriter, logging_stray_output, set_up_logs

if TYPE_CHECKING:
    from keyturn.practice import PracticeApi

CONFIG_FILE = Path("config.yaml")
BAD_CONFIGURATION = 2
NO_KEY = 3
DATA_ADDRESS, ADMIN_ADDRESS = "127.0.0.1:8080", "127.0.0.1:9090"

commands = typer.Typer(
    name="keyturn",
    help="An authenticating, rate-limit-aware reverse proxy for the Postman API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="The configuration file; default: ./config.yaml, else defaults with keys from POSTMAN_API_KEYS.",
    ),
]


def main() -> NoReturn:
    """Run a command; every error is one line on stderr."""
    if sys.stderr is None:  # closed by whoever started this
        sys.stderr = _nowhere()
    try:
        code = commands(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        told = _complaints(error)
        if told is None:
            raise
        lines, code = told
        for line in lines:
            _complain(line)
    sys.exit(code or 0)


def _complaints(error: BaseException) -> tuple[list[str], int] | None:
    """The message lines and the exit code for an error; `None` for an unexpected one."""
    match error:
        case ConfigError():
            return [str(problem) for problem in error.problems], BAD_CONFIGURATION
        case KeyturnError():
            return [str(error)], 1
        case typer.TyperException():
            message = error.format_message()  # empty when the help has been shown already
            return [message] if message else [], error.exit_code
        case OSError():
            return [f"{error.filename or 'this machine'}: {error.strerror or type(error).__name__}"], 1
        case KeyboardInterrupt() | typer.Abort():
            return [], 1
        case _:
            return None


def _show_version(asked: bool) -> None:
    if asked:
        print(f"keyturn {__version__}")
        raise typer.Exit


@commands.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


@commands.command()
def serve(path: ConfigOption = None) -> int:
    """Run the proxy until SIGTERM or SIGINT, and then complete waiting requests and those in flight."""
    from keyturn.app import App, serve_until_told

    chosen = _chosen(path)
    settings = config.load(chosen, os.environ)
    warnings = config.warnings(chosen, settings)
    return _serve(settings.log, warnings, lambda log: serve_until_told(App(settings, log=log), log.say))


@commands.command()
def check(
    path: ConfigOption = None,
    any_key: Annotated[
        bool, typer.Option("--any-key", help="Print nothing; exit with 3 if the configuration has no key.")
    ] = False,
) -> int:
    """Validate the configuration and print the effective one, with secrets masked."""
    if any_key:
        return _check_any_key(path)
    from keyturn.app import ResolvedConfig, link_to_store

    settings = _load(path)
    ResolvedConfig.of(settings)
    link_to_store(settings)
    print(yaml.safe_dump(config.effective(settings), sort_keys=False, allow_unicode=True), end="")
    return 0


@commands.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors and charts."""
    print(json.dumps(config.schema(), indent=2))


@commands.command()
def token(name: Annotated[str, typer.Argument(metavar="NAME", help="The client's name.")]) -> None:
    """Create a client token and print it once, with the entry for `clients:` that contains only its SHA-256."""
    from rich.console import Console

    if not is_name(name):
        message = "a name has 1 to 64 of the characters A-Z, a-z, 0-9, `.`, `_` and `-`"
        raise typer.BadParameter(message, param_hint="NAME")
    made = Secret(f"kt_{secrets.token_urlsafe(32)}")
    entry = yaml.safe_dump([{"name": name, "token_sha256": made.digest()}], sort_keys=False)
    console = Console(stderr=True, highlight=False)
    console.print(f"The token of {name}; it is not stored anywhere, hand it over now:")
    print(made.reveal())
    console.print("Add this under [bold]clients:[/] in config.yaml:")
    print(entry, end="")


@commands.command()
def practice(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 lets the system choose.", min=0, max=65535)] = 8443,
    limit: Annotated[int, typer.Option(help="Requests per window and key.", min=1)] = 60,
    window: Annotated[str, typer.Option(help="The window, such as 60s or 500ms.")] = "60s",
    kind: Annotated[
        Literal["fixed", "first", "rolling"],
        typer.Option(help="The start of windows: by the clock, at the first request, or rolling."),
    ] = "first",
    tls: Annotated[bool, typer.Option("--tls", help="Use HTTPS, with a new certificate.")] = False,
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --tls: write the certificate authority to this file instead of stdout."
        ),
    ] = None,
    key: Annotated[list[str] | None, typer.Option(help="An accepted key (repeatable); default: any.")] = None,
) -> None:
    """Run a practice Postman API: real limits, real error bodies, for your own tests."""
    from keyturn.practice import PracticeApi, PracticeSettings

    try:
        seconds = config.parse_duration(window) / 1_000_000
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--window") from None
    if ca is not None and not tls:
        raise typer.BadParameter("there is no certificate authority without --tls: add that", param_hint="--ca")
    settings = PracticeSettings(
        host=host, port=port, limit=limit, window=seconds, kind=kind, tls=tls, keys=tuple(key) if key else None
    )
    _check_stderr()
    uvloop.run(_practice(PracticeApi(settings), ca))


async def _practice(api: "PracticeApi", ca: Path | None) -> None:
    from keyturn.app import until_told

    async with api:
        if ca is not None:
            api.write_ca(ca)
        elif api.ca_pem is not None:
            print(api.ca_pem.decode(), end="", flush=True)
        await until_told(lambda: _say(f"ready practice={api.url}"))


@commands.command()
def status(
    url: Annotated[
        str, typer.Option(envvar="KEYTURN_ADMIN", help="The admin listener of a running proxy.")
    ] = f"http://{ADMIN_ADDRESS}",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second, until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON document; with --watch one line per second.")
    ] = False,
) -> None:
    """Show the state of a running proxy: keys, tokens, waiting clients, store."""
    from keyturn.status_view import output, show

    try:
        uvloop.run(show(output(), url, watch=watch, as_json=as_json))
    except KeyboardInterrupt:
        if not watch:
            raise


@commands.command(name="demo")
def run_demo(
    listen: Annotated[str, typer.Option(help="Address for callers; port 0 lets the system choose.")] = DATA_ADDRESS,
    admin: Annotated[str, typer.Option(help="Address for health and metrics.")] = ADMIN_ADDRESS,
) -> int:
    """Run a demo: a practice API over TLS, the proxy in front of it, and three clients with light traffic."""
    from keyturn import demo

    return _serve(LogSettings(level="warning"), (), lambda log: demo.run(log, listen=listen, admin=admin))


def _serve(
    settings: LogSettings, warnings: Iterable[object], work: Callable[[LogWriter], Coroutine[Any, Any, int]]
) -> int:
    """Run a server to its end and return its exit code; a separate thread writes its output."""
    _check_stderr()
    with LogWriter(sys.stderr) as log, logging_stray_output():
        set_up_logs(settings.level, settings.format, log)
        for warning in warnings:
            structlog.get_logger("keyturn").warning(str(warning))
        try:
            return uvloop.run(work(log))
        except Exception as error:  # noqa: BLE001  # whatever ends a server is told in its log
            lines, code = _complaints(error) or ([], 1)
            for line in lines:
                log.write(f"keyturn: {line}\n")
            if not lines:
                structlog.get_logger("keyturn").exception("unexpected error: this process ends")
            return code


def _check_stderr() -> None:
    """Check that there is a stderr, on which a server reports that it is ready, and its problems.

    Raises:
        Exit: stderr is closed; a message goes to stdout, if there is one.
    """
    if sys.__stderr__ is None:
        print("keyturn: stderr is closed, and nothing could be said on it: leave it open, or redirect it")
        raise typer.Exit(1)


def _chosen(path: Path | None) -> Path | None:
    return path if path is not None else CONFIG_FILE if CONFIG_FILE.is_file() else None


def _load(path: Path | None) -> Config:
    chosen = _chosen(path)
    settings = config.load(chosen, os.environ)
    for warning in config.warnings(chosen, settings):
        _complain(f"warning: {warning}")
    return settings


def _check_any_key(path: Path | None) -> int:
    try:
        settings = config.load(_chosen(path), os.environ)
    except ConfigError as error:
        return NO_KEY if all("POSTMAN_API_KEYS" in problem.message for problem in error.problems) else BAD_CONFIGURATION
    return 0 if settings.has_keys else NO_KEY


def _complain(line: str) -> None:
    try:
        print(f"keyturn: {line}", file=sys.stderr, flush=True)
    except OSError:  # the exit code has to do
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    """A stream that discards output."""
    return Path(os.devnull).open("w", encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
