"""The parser that commands have: texts are printed as they are written."""

import argparse


def command_parser(
    name: str, description: str, examples: str | None = None, *, usage: str | None = None, allow_abbrev: bool = True
) -> argparse.ArgumentParser:
    """Return the parser of ``fastslm NAME``, without options.

    Args:
        name: of the command.
        description: above its options.
        examples: below them.
        usage: in place of what argparse makes of the options.
        allow_abbrev: options may be cut short; not where some are those of another parser.
    """
    return argparse.ArgumentParser(
        f"fastslm {name}",
        usage=usage,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
    )
