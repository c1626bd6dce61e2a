"""The tokenizer of encoders of SMILES by Schwaller et al.: a token is an atom, a bond, a sign.

Their vocabularies are lists of tokens, one a line; the expression that splits a string is in their
papers and programs. A WordPiece tokenizer, which transformers makes of such a list, reads a string
as one unknown word.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from embedcache.errors import TokenizerError

# Schwaller et al. 2019, ACS Cent. Sci. 5, 1572, as rxnmapper and rxnfp have it
SPLIT = (
    r"\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?"
    r"|>>?|\*|\$|\%[0-9]{2}|[0-9]"
)
UNKNOWN = "[UNK]"
SPECIAL = {"pad": "[PAD]", "unk": UNKNOWN, "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def smiles_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a vocabulary, whose tokens have their places in it as ids.

    An endpoint `[*]` of a PSMILES is read as `*`, the same atom, where the vocabulary has that
    alone. What the expression does not know is unknown, and not left out, as the papers' programs
    do. Raises TokenizerError for a vocabulary that repeats a token or lacks a special one.
    """
    ids = {token: number for number, token in enumerate(vocabulary)}
    lacking = [token for token in SPECIAL.values() if token not in ids]
    if lacking or len(ids) < len(vocabulary):
        what = f"lacks {', '.join(lacking)}" if lacking else "repeats a token"
        raise TokenizerError(f"the vocabulary of {len(vocabulary)} tokens {what}")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    if "*" in ids and "[*]" not in ids:
        tokenizer.normalizer = normalizers.Replace("[*]", "*")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in SPECIAL.values() if token != UNKNOWN]
    )
    cls, sep = SPECIAL["cls"], SPECIAL["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
    )
    names = {f"{kind}_token": token for kind, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
