"""Which pages of key-value memory each sequence holds: counted, shared, given back (no tensors)."""

from __future__ import annotations

from wafergpt.backends.backend import Capacity, OutOfPages


class PageLedger:
    """The book-keeping that `Backend.open`, `fork`, `run` and `release` promise, for whoever must foresee it.

    A sequence of n positions holds ceil(n / page_tokens) pages. A fork shares the whole pages that it takes
    over and has a copy of the last one when that is taken over in part. A page is free again when its last
    holder goes.
    """

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._free = list(range(capacity.n_pages - 1, -1, -1))
        self._n_holders = [0] * capacity.n_pages
        self._held: dict[int, list[int]] = {}  # sequence -> its pages, in order

    @property
    def n_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def n_pages_of(self, n_tokens: int) -> int:
        """Pages that a sequence of so many positions holds."""
        return -(-n_tokens // self.capacity.page_tokens)

    def n_needed(self, sequence: int, n_tokens: int) -> int:
        """New pages for the sequence to hold `n_tokens` positions in all."""
        return max(0, self.n_pages_of(n_tokens) - len(self._held[sequence]))

    def open(self, sequence: int) -> None:
        """Note an empty sequence under a new handle."""
        assert sequence not in self._held
        self._held[sequence] = []

    def grow(self, sequence: int, n_tokens: int) -> None:
        """Let the sequence hold `n_tokens` positions in all. Raises OutOfPages, changing nothing."""
        needed = self.n_needed(sequence, n_tokens)
        self.check(needed)
        self._held[sequence] += [self._take() for _ in range(needed)]

    def check(self, n_pages: int) -> None:
        """Raise OutOfPages unless so many are free."""
        if n_pages > self.n_free:
            raise OutOfPages(f"{n_pages} pages of key-value memory are needed, {self.n_free} are free")

    def fork(self, origin: int, sequence: int, n_tokens: int) -> None:
        """Note one that starts with `n_tokens` of another. Raises OutOfPages, changing nothing."""
        n_whole, rest = divmod(n_tokens, self.capacity.page_tokens)
        self.check(int(rest > 0))
        pages = self._held[origin][:n_whole]
        for page in pages:
            self._n_holders[page] += 1
        self._held[sequence] = [*pages, *([self._take()] if rest else [])]

    def release(self, sequence: int) -> None:
        """Take back what the sequence holds."""
        for page in self._held.pop(sequence):
            self._n_holders[page] -= 1
            if self._n_holders[page] == 0:
                self._free.append(page)

    def _take(self) -> int:
        page = self._free.pop()
        self._n_holders[page] = 1
        return page
