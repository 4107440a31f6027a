"""Options of programs: declared once, read from flags, environment and TOML, checked all at once.

`fields` declares, `kinds`, `network` and `times` read values, `load` merges, `help` explains.
"""

from __future__ import annotations

from nsqtools.options.arguments import Arguments, parse_arguments
from nsqtools.options.fields import Option, option, options_of, repeated, settings_of
from nsqtools.options.help import NO_EFFECT, help_text
from nsqtools.options.kinds import (
    BOOL,
    DURATION,
    FLOAT,
    FOLDER,
    INT,
    LOG_LEVEL,
    NAME_VALUE,
    PATH,
    SECRET,
    SIZE,
    TEXT,
    Choice,
    Duration,
    FilePath,
    Float,
    Int,
    Kind,
    OutOfRange,
    Setting,
    Size,
    render_duration,
)
from nsqtools.options.load import load, load_parsed, load_settings
from nsqtools.options.network import (
    ADDRESS,
    HOST,
    HTTP_ADDRESS,
    LISTEN_ADDRESS,
    Address,
    join_address,
    split_address,
)
from nsqtools.options.patterns import REGEX, Pattern
from nsqtools.options.shown import mask_passwords, printable, quoted
from nsqtools.options.times import STRFTIME, TIMESTAMP, parse_time_ns, render_time_ns

__all__ = [
    "ADDRESS",
    "BOOL",
    "DURATION",
    "FLOAT",
    "FOLDER",
    "HOST",
    "HTTP_ADDRESS",
    "INT",
    "LISTEN_ADDRESS",
    "LOG_LEVEL",
    "NAME_VALUE",
    "NO_EFFECT",
    "PATH",
    "REGEX",
    "SECRET",
    "SIZE",
    "STRFTIME",
    "TEXT",
    "TIMESTAMP",
    "Address",
    "Arguments",
    "Choice",
    "Duration",
    "FilePath",
    "Float",
    "Int",
    "Kind",
    "Option",
    "OutOfRange",
    "Pattern",
    "Setting",
    "Size",
    "help_text",
    "join_address",
    "load",
    "load_parsed",
    "load_settings",
    "mask_passwords",
    "option",
    "options_of",
    "parse_arguments",
    "parse_time_ns",
    "printable",
    "quoted",
    "render_duration",
    "render_time_ns",
    "repeated",
    "settings_of",
    "split_address",
]
