"""A small HTTP assistant that survives: killed, hung or switched off, it goes on with all that it has acknowledged.

python examples/assistant/main.py                              # by hand: it starts the system if there is none
python launcher.py -- python examples/assistant/main.py        # or as the launcher's program

curl -X PUT localhost:8080/documents/cats -d '{"text": "Cats sleep sixteen hours a day."}'
curl localhost:8080/ask -d '{"question": "How long do cats sleep?"}'
"""

import argparse

from assistant import Assistant
from keeper import Keeper
from model import LocalModel
from web import serve

from app.system_startup import SystemApplication


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description="A small HTTP assistant that survives.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--hang-timeout", type=float, help="seconds of silence that count as a hang")
    parser.add_argument("--model-delay", type=float, default=0.05, help="seconds that the model thinks")
    parser.add_argument("--demo", action="store_true", help="let POST /demo have it misbehave")
    options = parser.parse_args()
    assistant = Assistant(LocalModel(options.model_delay), demo=options.demo)

    async def run(app: SystemApplication) -> None:
        assistant.begin(app.recovered or app.last_state(), Keeper(app.recovery))
        server = await serve(assistant.handle, options.host, options.port)
        async with server:
            await app.stopping.wait()
        assistant.close()

    SystemApplication(run, name="assistant", state=assistant.state, hang_timeout_s=options.hang_timeout).run()


if __name__ == "__main__":
    main()
