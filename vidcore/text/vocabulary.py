"""Word-level tokens."""

import re

PAD = 0  # the token of "no word here"; an all-PAD prompt is the unconditional one


class UnknownWordsError(ValueError):
    """A prompt has words that the model never saw; the message lists them and all words that it knows."""


class Vocabulary:
    """Maps a prompt to token numbers; letters only, case and punctuation are ignored.

    Args:
        words: the known words in order; word i has token i + 1.
        length: tokens per prompt, padded with PAD.
    """

    def __init__(self, words: tuple[str, ...], length: int):
        self.words, self.length = tuple(words), length
        self.token = {word: i + 1 for i, word in enumerate(self.words)}

    def encode(self, prompt: str) -> list[int]:
        """Exactly ``length`` tokens.

        Raises:
            UnknownWordsError: if a word is not in the vocabulary.
            ValueError: if the prompt is longer than ``length`` words.
        """
        words = re.findall(r"[^\W_]+", prompt.lower())
        unknown = sorted({word for word in words if word not in self.token})
        if unknown:
            raise UnknownWordsError(
                f"This model's text encoder does not know: {', '.join(unknown)}. "
                f"It was trained on a small vocabulary; please use only these words: {', '.join(sorted(self.words))}."
            )
        if len(words) > self.length:
            raise ValueError(f"This model reads prompts of at most {self.length} words; this one has {len(words)}.")
        return [self.token[word] for word in words] + [PAD] * (self.length - len(words))

    def __len__(self) -> int:
        return len(self.words) + 1
