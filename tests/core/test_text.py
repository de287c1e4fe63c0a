import pytest
import torch

from vidcore.text import TextConfig, TextEncoder, UnknownWordsError, Vocabulary

WORDS = ("a", "red", "star", "blue")


def test_case_and_punctuation_do_not_matter():
    vocabulary = Vocabulary(WORDS, 6)
    assert vocabulary.encode("A red, STAR!") == vocabulary.encode("a red star") == [1, 2, 3, 0, 0, 0]
    assert vocabulary.encode("") == [0] * 6


def test_unknown_words_are_all_named_with_the_known_ones():
    with pytest.raises(UnknownWordsError, match=r"does not know: and, zebra\..*a, blue, red, star"):
        Vocabulary(WORDS, 9).encode("a zebra and a red star")


def test_too_long_a_prompt_is_refused():
    with pytest.raises(ValueError, match="at most 2 words; this one has 3"):
        Vocabulary(WORDS, 2).encode("a red star")


@torch.no_grad()
def test_encoder_reads_order_and_gives_zeros_for_no_words():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(WORDS, 4, 16, 2, 2)).eval()
    tokens = torch.tensor([[1, 2, 3, 0], [1, 3, 2, 0], [0, 0, 0, 0]])
    out = encoder(tokens)
    assert out.shape == (3, 4, 16)
    assert not torch.allclose(out[0].mean(0), out[1].mean(0), atol=1e-4)
    assert torch.equal(out[2], torch.zeros(4, 16))
    torch.testing.assert_close(encoder(tokens[:1]), out[:1])


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(WORDS, 4, 16, 2, 2))
    encoder(torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]])).pow(3).sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
