"""The steps that options ask for, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.transform.hook import Hook
from nsqtools.transform.json_fields import JsonFields
from nsqtools.transform.steps import Grep, Sample, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.transform.hook import Function
    from nsqtools.transform.options import TransformOptions
    from nsqtools.transform.steps import Step
    from nsqtools.wire.messages import Messages


class Chain:
    """The steps of one topic. `hook` is there where `--transform` is."""

    def __init__(self, options: TransformOptions, function: Function | None = None) -> None:
        steps: list[Step] = []
        if options.sample < 1.0:
            steps.append(Sample(options.sample))
        self.is_cheap = True
        """Whether no body is looked at."""
        if options.grep is not None:
            steps.append(Grep(options.grep))
        if options.grep_exclude is not None:
            steps.append(Grep(options.grep_exclude, excludes=True))
        if options.looks_at_json:
            steps.append(
                JsonFields(
                    non_json=options.non_json or "drop",
                    field=options.require_json_field,
                    value=options.require_json_value,
                    whitelist=options.whitelist_json_field,
                )
            )
        self.hook = None if function is None else Hook(function, str(options.transform))
        if self.hook is not None:
            steps.append(self.hook)
        self.is_cheap = all(isinstance(step, Sample) for step in steps)
        self._steps = steps

    def apply(self, batches: Sequence[Messages]) -> list[Work]:
        """All steps on all batches. Raises Stopped where `hook` was stopped."""
        works = [Work(messages) for messages in batches]
        for work in works:
            for step in self._steps:
                if work.places:
                    step.apply(work)
        return works
