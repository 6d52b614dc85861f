"""`python -m keyturn`, and the command `keyturn`."""

import gc


def main() -> None:
    """Run the command line."""
    gc.disable()  # while modules are loaded nothing becomes garbage, and looking for it takes a tenth of the time
    from keyturn import cli  # noqa: PLC0415

    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
