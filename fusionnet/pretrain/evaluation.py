"""How well a model tells what was never shown to it: perplexity and accuracy of masked tokens, and
the variance of ranks that it explains, on the strings held out.

The masks are the same at every evaluation.
"""

import math

import torch

from embedcache.encoder.batching import length_batches
from fusionnet.pretrain.masking import Vocabulary
from fusionnet.pretrain.objectives import PretrainedModel
from fusionnet.pretrain.packing import share_of
from fusionnet.pretrain.prepared import Prepared
from fusionnet.train.world import World

_BATCH_TOKENS = 8_192
_MASK_SEED = 20_231_129


@torch.no_grad()
def evaluated(
    model: PretrainedModel, corpus: Prepared, vocabulary: Vocabulary, world: World
) -> dict[str, float | None]:
    """Return `perplexity`, `accuracy` and `rank_r2` on the held-out strings.

    None for what is no objective.
    """
    ids = corpus.held_out
    token_loss = num_right = rank_loss = 0.0
    num_targets = num_ranked = 0
    for number, batch in enumerate(length_batches(corpus.tokens.lengths[ids], _BATCH_TOKENS)):
        share = share_of(corpus.tokens, corpus.ranks, ids[batch], vocabulary, _MASK_SEED + number)
        told = model(share.to(world.device))
        token_loss += float(told.token_loss)
        num_right += float(told.num_right)
        rank_loss += float(told.rank_loss)
        num_targets += len(share.targets)
        num_ranked += int(share.ranks.isfinite().any(1).sum())
    guesses = model.token_head is not None and num_targets > 0
    ranks = model.rank_head is not None and num_ranked > 0
    return {
        "perplexity": math.exp(token_loss / num_targets) if guesses else None,
        "accuracy": num_right / num_targets if guesses else None,
        # ranks are standardised over the corpus: their mean square is one
        "rank_r2": 1 - rank_loss / num_ranked if ranks else None,
    }
