"""What the assistant knows: documents, found by the words that they share with a question."""

import re
from dataclasses import dataclass

PASSAGES_MAX = 3
_WORD = re.compile(r"\w{3,}")


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `revision` is the number of the change that brought it."""

    text: str
    revision: int


class KnowledgeBase:
    """Documents by their ids, and the number of changes that have been made to them."""

    def __init__(self) -> None:
        """Know nothing."""
        self.revision = 0
        self.documents: dict[str, Document] = {}

    def put(self, name: str, text: str) -> int:
        """Add or replace a document; returns the number of this change."""
        self.revision += 1
        self.documents[name] = Document(text, self.revision)
        return self.revision

    def remove(self, name: str) -> int:
        """Remove a document; returns the number of this change.

        Raises:
            KeyError: there is none of that name.
        """
        del self.documents[name]
        self.revision += 1
        return self.revision

    def search(self, question: str) -> list[str]:
        """Return the texts that share most words with a question, the best first."""
        asked = words(question)
        found = [(len(asked & words(document.text)), document) for document in self.documents.values()]
        found.sort(key=lambda item: (-item[0], item[1].revision))
        return [document.text for shared, document in found[:PASSAGES_MAX] if shared]

    def state(self) -> dict[str, object]:
        """Return all of it, as a checkpoint can hold it."""
        documents = {name: [document.text, document.revision] for name, document in self.documents.items()}
        return {"revision": self.revision, "documents": documents}

    def restore(self, state: dict[str, object]) -> None:
        """Become what `state` returned.

        Raises:
            ValueError: that was never one state: it is of different times.
        """
        documents = {name: Document(*item) for name, item in state["documents"].items()}  # type: ignore[attr-defined]
        revisions = [document.revision for document in documents.values()]
        if len(set(revisions)) != len(revisions) or max(revisions, default=0) > int(str(state["revision"])):
            raise ValueError("the knowledge base is not of one moment")
        self.revision, self.documents = int(str(state["revision"])), documents


def words(text: str) -> set[str]:
    """Return the words of a text that are worth comparing."""
    return set(_WORD.findall(text.casefold()))
