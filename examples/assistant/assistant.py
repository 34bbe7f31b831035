"""The assistant: what it does with a question, with a document, and with what it was before it died."""

import os
import time
from http import HTTPStatus
from typing import Any

from cache import AnswerCache
from keeper import Keeper
from knowledge import KnowledgeBase
from model import LocalModel, ModelUnavailableError
from web import Refusal, Request
from workers import BusyError, WorkerPool

from protocol.errors import ReliabilityError

ANSWER_S = 20.0

Answer = tuple[HTTPStatus, Any]


class Assistant:
    """Answers requests; see `handle` for which there are.

    Attributes:
        knowledge: what it knows.
        answers: what it has answered.
    """

    def __init__(self, model: LocalModel, *, demo: bool = False) -> None:
        """Know nothing yet; with `demo` it can be told to misbehave."""
        self.knowledge = KnowledgeBase()
        self.answers = AnswerCache()
        self._model = model
        self._pool = WorkerPool()
        self._demo = demo
        self._keeper: Keeper | None = None
        self._began_with = 0

    def state(self) -> dict[str, object]:
        """Return everything that has to outlive this process."""
        return {"knowledge": self.knowledge.state(), "answers": self.answers.state()}

    def begin(self, state: Any, keeper: Keeper) -> None:
        """Go on from a state, or from nothing."""
        if state is not None:
            self.knowledge.restore(state["knowledge"])
            self.answers.restore(state["answers"])
        self._keeper = keeper
        self._began_with = self.knowledge.revision

    def close(self) -> None:
        """Answer no more."""
        self._pool.close()

    async def handle(self, request: Request) -> Answer:
        """Answer one request.

        Raises:
            Refusal: it cannot be answered.
        """
        match request.method, request.path:
            case "GET", ("health",):
                return HTTPStatus.OK, {"status": "ok", "model": self._model.available}
            case "GET", ("stats",):
                return HTTPStatus.OK, self._stats()
            case "POST", ("ask",):
                return await self._ask(_text(request, "question"))
            case "GET", ("documents",):
                return HTTPStatus.OK, self.knowledge.state()
            case "GET", ("documents", name):
                return HTTPStatus.OK, {"id": name, "text": self._document(name)}
            case "PUT", ("documents", name):
                return await self._kept(self.knowledge.put(name, _text(request, "text")), name)
            case "DELETE", ("documents", name):
                self._document(name)
                return await self._kept(self.knowledge.remove(name), name)
            case "POST", ("demo",) if self._demo:
                return self._misbehave(_text(request, "do"))
        raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing of that name, or it cannot be done with it")

    async def _ask(self, question: str) -> Answer:
        """Answer from the cache, the model, or what comes closest to its answer while it is away."""
        revision = self.knowledge.revision
        known = self.answers.get(question, revision)
        if known is not None:
            return HTTPStatus.OK, {"answer": known, "source": "cache"}
        passages = self.knowledge.search(question)
        try:
            answer = await self._pool.run(self._model.answer, question, passages, timeout_s=ANSWER_S)
        except BusyError:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many ask at once; try again") from None
        except (ModelUnavailableError, TimeoutError):
            return self._ask_without_model(question, passages)
        self.answers.put(question, revision, answer)
        return HTTPStatus.OK, {"answer": answer, "source": "model"}

    def _ask_without_model(self, question: str, passages: list[str]) -> Answer:
        stale = self.answers.get(question)
        if stale is not None:
            return HTTPStatus.OK, {"answer": stale, "source": "cache"}
        if passages:
            return HTTPStatus.OK, {"answer": passages[0], "source": "knowledge"}
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the model is away, and nothing else knows")

    async def _kept(self, revision: int, name: str) -> Answer:
        """Acknowledge a change: not before it is durable."""
        if self._keeper is None:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not begun yet")
        try:
            await self._keeper.kept()
        except ReliabilityError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"that may be lost: {error.message}") from None
        return HTTPStatus.OK, {"id": name, "revision": revision}

    def _document(self, name: str) -> str:
        document = self.knowledge.documents.get(name)
        if document is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is no document {name!r}")
        return document.text

    def _stats(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "revision": self.knowledge.revision,
            "began_with_revision": self._began_with,
            "documents": len(self.knowledge.documents),
            "answers": len(self.answers),
            "under_way": self._pool.under_way,
        }

    def _misbehave(self, what: str) -> Answer:
        match what:
            case "hang":
                time.sleep(3600)  # what no coroutine may do
            case "crash":
                os.abort()
            case "model_down" | "model_up":
                self._model.available = what == "model_up"
            case _:
                raise Refusal(HTTPStatus.BAD_REQUEST, "it can hang, crash, model_down and model_up")
        return HTTPStatus.OK, {"done": what}


def _text(request: Request, key: str) -> str:
    value = request.body.get(key) if isinstance(request.body, dict) else None
    if not isinstance(value, str) or not value:
        raise Refusal(HTTPStatus.BAD_REQUEST, f'send {{"{key}": "TEXT"}}')
    return value
