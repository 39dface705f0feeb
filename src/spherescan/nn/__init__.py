"""Modules: what has parameters."""

from spherescan.nn.block import Block, MixerFactory
from spherescan.nn.description import MIXERS, ModelDescription
from spherescan.nn.embedding import SeriesEmbedding
from spherescan.nn.front_end import MultiScaleConvolution
from spherescan.nn.grow import freeze, insert_blocks
from spherescan.nn.local_head import LocalHead
from spherescan.nn.mamba import Mamba, MambaState
from spherescan.nn.model import SequenceModel
from spherescan.nn.placement import Placement, separated_prototypes
from spherescan.nn.pooling import POOLING_NAMES, AttentionPool, Pooling
from spherescan.nn.prototypes import PrototypeHead
from spherescan.nn.published import load_published
from spherescan.nn.separation import separation_bound
from spherescan.nn.streaming import StreamedModel, StreamState, digest_of_weights

__all__ = [
    "MIXERS",
    "POOLING_NAMES",
    "AttentionPool",
    "Block",
    "LocalHead",
    "Mamba",
    "MambaState",
    "MixerFactory",
    "ModelDescription",
    "MultiScaleConvolution",
    "Placement",
    "Pooling",
    "PrototypeHead",
    "SequenceModel",
    "SeriesEmbedding",
    "StreamState",
    "StreamedModel",
    "digest_of_weights",
    "freeze",
    "insert_blocks",
    "load_published",
    "separated_prototypes",
    "separation_bound",
]
