"""Answers that were given before; the one that was asked for longest ago goes first."""


class AnswerCache:
    """At most so many answers, each of one revision of the knowledge base: what has changed is asked anew."""

    def __init__(self, answers_max: int = 1000) -> None:
        """Begin empty."""
        self._answers: dict[str, tuple[int, str]] = {}
        self._answers_max = answers_max

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._answers)

    def get(self, question: str, revision: int | None = None) -> str | None:
        """Return the answer to a question; with `revision`, only if it is of that one."""
        found = self._answers.get(question)
        if found is None or (revision is not None and found[0] != revision):
            return None
        self._answers[question] = self._answers.pop(question)  # the youngest now
        return found[1]

    def put(self, question: str, revision: int, answer: str) -> None:
        """Remember an answer."""
        self._answers.pop(question, None)
        self._answers[question] = (revision, answer)
        while len(self._answers) > self._answers_max:
            del self._answers[next(iter(self._answers))]

    def state(self) -> list[list[object]]:
        """Return all of it, as a checkpoint can hold it."""
        return [[question, revision, answer] for question, (revision, answer) in self._answers.items()]

    def restore(self, state: list[list[object]]) -> None:
        """Become what `state` returned."""
        self._answers = {str(question): (int(str(revision)), str(answer)) for question, revision, answer in state}
