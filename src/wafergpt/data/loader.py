"""From shards to batches: the sample at a position is a pure function of (seed, epoch, index).

Nothing is replayed on resume and nothing depends on how many workers or processes read: whoever asks
for position i gets the same window. The shuffle is a keyed permutation computed per index (a Feistel
network with cycle walking), so it needs no memory, whatever the size of the corpus, and no library's
random stream, which a new version might change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wafergpt.config import require
from wafergpt.data.packing import n_windows
from wafergpt.data.shards import ShardSet
from wafergpt.errors import DataError

Indices = npt.NDArray[np.uint64]

_ROUNDS = 6  # four make a Feistel network pseudo-random (Luby and Rackoff 1988); small halves get two more
_MASK = (1 << 64) - 1


def _mix(value: Indices) -> Indices:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): 64 bits in, 64 well-mixed bits out."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> Indices:
    """[_ROUNDS] keys; different for every (seed, epoch)."""
    golden = 0x9E3779B97F4A7C15  # SplitMix64's increment, 2^64 divided by the golden ratio
    start = _mix(np.array([seed & _MASK], np.uint64))
    start = _mix(start ^ _mix(np.array([(epoch * golden + 1) & _MASK], np.uint64)))
    steps = np.array([(golden * (round_ + 1)) & _MASK for round_ in range(_ROUNDS)], np.uint64)
    return _mix(start + steps)


def permute(indices: Indices, n: int, seed: int, epoch: int) -> Indices:
    """Image of `indices` (each below `n`) under the permutation of range(n) keyed by (seed, epoch)."""
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))  # bits of each half; 4^half >= n
    low = np.uint64((1 << int(half)) - 1)
    keys = _round_keys(seed, epoch)
    out = indices.astype(np.uint64, copy=True)
    walking = np.ones(len(out), bool)
    while walking.any():  # outside range(n) the walk goes on; at most 4 steps on average
        value = out[walking]
        left, right = value >> half, value & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        out[walking] = (left << half) | right
        walking[walking] = out[walking] >= n
    return out


class Loader:
    """Shuffled windows of `seq_len` + 1 ids with stride `seq_len` over the whole shard set.

    When shuffled, each later epoch cuts the corpus at other places (`offset`), so that text met again stands
    in another context. A run of one epoch, the published recipe, is not touched by this.
    """

    def __init__(self, shards: ShardSet, seq_len: int, seed: int = 0, *, shuffle: bool = True) -> None:
        """Raises ConfigError for a bad length, DataError if the corpus is shorter than one window."""
        require(seq_len >= 1, f"seq_len = {seq_len} must be at least 1")
        self.shards = shards
        self.seq_len = seq_len
        self.seed = seed
        self.shuffle = shuffle
        self.n_samples = n_windows(shards.n_tokens, seq_len)
        """Windows in one epoch."""
        if self.n_samples == 0:
            raise DataError(
                f"the corpus in '{shards.folder}' has {shards.n_tokens} tokens, fewer than one window of "
                f"{seq_len} + 1; use more text or a smaller sequence length"
            )

    def sample_ids(self, epoch: int, indices: npt.ArrayLike) -> Indices:
        """Window numbers at positions `indices` (each below n_samples) of an epoch: same shape [n]."""
        wanted = np.asarray(indices, np.uint64)
        return permute(wanted, self.n_samples, self.seed, epoch) if self.shuffle else wanted

    def sample_id(self, epoch: int, index: int) -> int:
        """The window number at one position of an epoch."""
        return int(self.sample_ids(epoch, [index])[0])

    def offset(self, epoch: int) -> int:
        """Where the first window starts: 0 in the first epoch, later one of seq_len places by the seed."""
        if epoch == 0 or not self.shuffle:
            return 0
        return int(_round_keys(self.seed, epoch)[0] % np.uint64(self.seq_len))

    def start(self, epoch: int, window: int) -> int:
        """The position in the corpus of a window's first id; the last window ends where the corpus does."""
        return min(self.offset(epoch) + window * self.seq_len, self.shards.n_tokens - self.seq_len - 1)

    def n_tokens(self, n_samples: int) -> int:
        """Tokens of the first `n_samples` samples, as labels."""
        return n_samples * self.seq_len

    def batch(self, index0: int, batch_size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(inputs[B,T], labels[B,T]) for the global positions index0 … index0 + batch_size - 1.

        Position p lies in epoch p // n_samples at index p % n_samples, so a batch may cross into the next
        epoch. Labels are the inputs moved one to the left.
        """
        require(index0 >= 0 and batch_size >= 1, f"no batch of {batch_size} samples at position {index0}")
        positions = range(index0, index0 + batch_size)
        windows = np.empty((batch_size, self.seq_len + 1), np.int64)  # [B, T+1]
        row = 0
        for epoch in range(positions[0] // self.n_samples, positions[-1] // self.n_samples + 1):
            first = max(positions[0], epoch * self.n_samples)
            last = min(positions[-1], (epoch + 1) * self.n_samples - 1)
            indices = np.arange(first, last + 1) - epoch * self.n_samples
            for window in self.sample_ids(epoch, indices):
                windows[row] = self.shards.read(self.start(epoch, int(window)), self.seq_len + 1)
                row += 1
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
