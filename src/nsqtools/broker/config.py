"""/config/<opt>: the broker's options as nsqd shows them, and the two that can be changed.

Durations are nanoseconds, the log level is a number (spec: nsqd-http, 2.5). An option has nsqd's
configuration key; options that nsqd has and this broker does not are not there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools.errors import OptionsError
from nsqtools.observe.log import set_level
from nsqtools.options import LOG_LEVEL, NO_EFFECT, Duration, options_of

if TYPE_CHECKING:
    from nsqtools.broker.view import BrokerView
    from nsqtools.options import Option

LOOKUPD_KEY = "nsqlookupd_tcp_addresses"
LOG_LEVEL_KEY = "log_level"
LOG_LEVELS = {"debug": 1, "info": 2, "warn": 3, "error": 4, "fatal": 5}


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def value_of(broker: BrokerView, key: str) -> object:
    """What GET answers. Raises KeyError for an option that does not exist."""
    if key == LOOKUPD_KEY and broker.registrar is not None:
        return broker.registrar.addresses
    if key == "broadcast_address":
        return broker.options.effective_broadcast_address
    for option in options_of(type(broker.options)):
        if _key_of(option) == key and option.group != NO_EFFECT:
            return _shown(option, getattr(broker.options, option.name))
    raise KeyError(key)


def change(broker: BrokerView, key: str, body: bytes) -> None:
    """What PUT does; nothing of it outlives the process.

    Raises KeyError for an option that cannot be changed, ValueError for a value that is none.
    """
    if key == LOG_LEVEL_KEY:
        level = LOG_LEVEL.parse(body.decode("utf-8", "replace"))
        set_level(level)
        broker.options = replace(broker.options, log_level=level)
    elif key == LOOKUPD_KEY:
        _change_lookupds(broker, body)
    else:
        raise KeyError(key)


def _change_lookupds(broker: BrokerView, body: bytes) -> None:
    try:
        addresses = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if addresses is None:
        addresses = []
    if not isinstance(addresses, list) or not all(isinstance(one, str) for one in addresses):
        raise ValueError("not an array of strings")
    if broker.registrar is None:
        raise ValueError("not started")
    try:
        broker.registrar.set_addresses(addresses)
    except OptionsError as error:
        raise ValueError(str(error)) from error


def _key_of(option: Option) -> str:
    # Where nsqd's key is not its flag's name, it is the alias.
    return option.aliases[0] if option.aliases else option.key


def _shown(option: Option, value: object) -> object:
    if isinstance(option.kind, Duration) and isinstance(value, float):
        return nanoseconds(value)
    if option.kind is LOG_LEVEL:
        return LOG_LEVELS[str(value)]
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
