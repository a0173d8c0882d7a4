"""The subcommands of `edge-train`, one module each: `add_arguments(parser)` and `run(options) -> int`."""
