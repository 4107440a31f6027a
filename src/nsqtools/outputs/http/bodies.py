"""What requests say of messages: their bodies, as they are or by a template, joined, compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.observe.log import get_log
from nsqtools.outputs.http.batches import Unfit, compressor, is_json, join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsqtools.outputs.http.batches import Batching, Encoding
    from nsqtools.outputs.http.body_template import BodyTemplate
    from nsqtools.outputs.workers import Strand
    from nsqtools.wire.messages import Messages

    Row = tuple[Messages, int]
    """A message: its batch and its number there."""

# More than this is compressed in a thread: the loop has other things to do.
COMPRESSED_ON_LOOP_BYTES = 64 << 10
NO_TEXTS: Mapping[int, bytes] = {}


class Bodies:
    """Those of one topic. Messages are known by their places among the rows of a delivery."""

    def __init__(
        self,
        topic: str,
        batching: Batching | None,
        encoding: Encoding,
        template: BodyTemplate | None,
        strand: Strand,
    ) -> None:
        """`strand` compresses what is large."""
        self.ambiguous = 0
        """Messages that cannot be told from two."""
        self._topic = topic
        self._batching = batching
        self._template = template
        self._strand = strand
        self.compress = compressor(encoding)
        # Its own: a compressor that is used on the loop and in a thread at once breaks its memory.
        self._compress_in_thread = compressor(encoding)
        self.are_looked_at = batching is not None or template is not None
        self.are_plain = not self.are_looked_at and self.compress is None

    def fit(
        self, rows: Sequence[Row], places: Sequence[int]
    ) -> tuple[Sequence[int], Mapping[int, bytes], Mapping[int, Unfit]]:
        """Those that can be sent; what is sent of them, where it is not their bodies; and why the others
        cannot."""
        texts, unfit = NO_TEXTS, dict[int, Unfit]()
        batch_format = self._batching.format if self._batching is not None else ""
        if self._template is not None:
            texts, unfit = self._rendered(rows, places, self._template)
            places = [place for place in places if place not in unfit]
        elif batch_format == "json":
            unfit = {place: _NOT_JSON for place in places if not is_json(body_of(rows[place]))}
            places = [place for place in places if place not in unfit]
        if batch_format == "lines":
            self._look_for_newlines(self._texts(rows, texts, places))
        return places, texts, unfit

    def _rendered(
        self, rows: Sequence[Row], places: Sequence[int], template: BodyTemplate
    ) -> tuple[dict[int, bytes], dict[int, Unfit]]:
        texts: dict[int, bytes] = {}
        unfit: dict[int, Unfit] = {}
        for place in places:
            try:
                texts[place] = template.render(*rows[place])
            except Unfit as reason:
                unfit[place] = reason
        return texts, unfit

    def _look_for_newlines(self, texts: Sequence[bytes]) -> None:
        found = sum(b"\n" in text for text in texts)
        is_first = found and not self.ambiguous
        self.ambiguous += found
        if is_first:
            get_log("http").warning(
                "a message holds a newline: as lines it cannot be told from two; use"
                " --batch-format=length-prefixed or json",
                topic=self._topic,
            )

    def body(self, rows: Sequence[Row], texts: Mapping[int, bytes], places: Sequence[int]) -> bytes:
        """The body of one request, not compressed yet."""
        if self._batching is not None:
            return join(self._texts(rows, texts, places), self._batching.format)
        return texts[places[0]] if texts else body_of(rows[places[0]])

    def _texts(
        self, rows: Sequence[Row], texts: Mapping[int, bytes], places: Sequence[int]
    ) -> list[bytes]:
        if texts:
            return [texts[place] for place in places]
        return [body_of(rows[place]) for place in places]

    async def compressed(self, body: bytes) -> bytes:
        """On the loop what is small; what is not in a thread."""
        compress, compress_in_thread = self.compress, self._compress_in_thread
        if compress is None or compress_in_thread is None:
            return body
        if len(body) <= COMPRESSED_ON_LOOP_BYTES:
            return compress(body)
        return await self._strand.call(lambda: compress_in_thread(body))


_NOT_JSON = Unfit("the body is no JSON, and cannot stand in an array", "not JSON")


def body_of(row: Row) -> bytes:
    """The body of a message."""
    return row[0].bodies[row[1]]
