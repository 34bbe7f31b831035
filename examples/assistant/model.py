"""A stand-in for a language model on this machine: slow, sometimes away, and no wiser than what it is given to read."""

import time


class ModelUnavailableError(Exception):
    """The model does not answer: it is not loaded, or its process has died."""


class LocalModel:
    """Answers from passages.

    Attributes:
        delay_s: how long it thinks.
        available: whether it answers.
    """

    def __init__(self, delay_s: float = 0.05) -> None:
        """Load nothing: there is nothing to load."""
        self.delay_s = delay_s
        self.available = True

    def answer(self, question: str, passages: list[str]) -> str:
        """Return an answer. Takes its time, so it is called on a thread of the pool.

        Raises:
            ModelUnavailableError: it cannot.
        """
        if not self.available:
            raise ModelUnavailableError
        time.sleep(self.delay_s)
        if not passages:
            return f"I know nothing about that: {question}"
        return f"I have read this: {' '.join(passages)}"
