"""Key/value caches for decoding: one whose layers grow in blocks, one that is a ring of columns.

Extension points of transformers (cache layers). Imports torch: import this inside functions.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Grows in blocks of columns, so that a decoding step writes one column, not a copy of all."""

    room = 64

    def lazy_initialization(self, key_states, value_states):
        self.dtype, self.device = key_states.dtype, key_states.device
        self.stores, self.length, self.is_initialized = None, 0, True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if self.stores is None or end > self.stores[0].shape[2]:
            self._grow(key_states, end)
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store[:, :, self.length : end] = states
        self.length = end
        self.keys, self.values = (store[:, :, :end] for store in self.stores)
        return self.keys, self.values

    def _grow(self, like, end):
        batch, heads, _, width = like.shape
        shape, kind = (batch, heads, end + self.room, width), {"dtype": like.dtype}
        stores = [torch.empty(shape, device=like.device, **kind) for _ in "kv"]
        if self.stores is not None:
            for new, old in zip(stores, self.stores, strict=True):
                new[:, :, : self.length] = old[:, :, : self.length]
        self.stores = stores

    def get_seq_length(self):
        return self.length if self.is_initialized else 0

    def rebuild(self, change):
        """Replace keys and values, each [batch, kv_heads, length, width], by change(tensor)."""
        self.stores = [change(store[:, :, : self.length]).contiguous() for store in self.stores]
        self.length = self.stores[0].shape[2]
        self.keys, self.values = self.stores

    def join(self, other):
        """Append the rows of another layer; the shorter of the two gets zeros on its left."""
        width = max(self.length, other.length)
        stores = []
        for a, b in zip(self.stores, other.stores, strict=True):
            shape = (a.shape[0] + b.shape[0], a.shape[1], width + self.room, a.shape[3])
            store = torch.zeros(shape, dtype=a.dtype, device=a.device)
            store[: a.shape[0], :, width - self.length : width] = a[:, :, : self.length]
            store[a.shape[0] :, :, width - other.length : width] = b[:, :, : other.length]
            stores.append(store)
        self.stores, self.length = stores, width
        self.keys, self.values = (store[:, :, :width] for store in stores)


class RingLayer(DynamicLayer):
    """Writes one column, the one that the tensor `column` names, and hands out all."""

    def __init__(self, rows: int, columns: int, column):
        super().__init__()
        self.rows, self.columns, self.column = rows, columns, column

    def lazy_initialization(self, key_states, value_states):
        _, heads, _, width = key_states.shape
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        # zeros, not empty: a column that is masked still counts times nothing, and nothing times
        # NaN is NaN
        shape = (self.rows, heads, self.columns, width)
        self.stores = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in "kv"]
        self.keys, self.values = self.stores

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store.index_copy_(2, self.column, states)
        return self.stores

    def get_seq_length(self):
        return self.columns


def roomy(config) -> DynamicCache:
    """An empty cache of `RoomyLayer`s for a model of this config."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() for _ in range(config.num_hidden_layers)]
    return cache


def ring(config, rows: int, columns: int, column) -> DynamicCache:
    """An empty cache of `RingLayer`s: `rows` places of `columns`, written where `column` says."""
    cache = DynamicCache(config=config)
    cache.layers = [RingLayer(rows, columns, column) for _ in range(config.num_hidden_layers)]
    return cache
