"""A model server as OpenAI's API has it, for the tests of the gateway: it answers each chat as a judge that says yes,
and one that wants a better prompt with an improved one.

Run in a container of its own. GET / lists the requests so far: path, header Authorization, and whether a webhook was sent.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

received: list[dict[str, object]] = []
VERDICT = json.dumps({"result": "yes", "rationale": "the stub says so"})
IMPROVED = json.dumps({"assistant": "Answer in one sentence: {{question}}"})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(received)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        received.append({"path": self.path, "key": self.headers.get("Authorization", ""), "model": body.get("model")})
        wants_prompt = "expert prompt engineer" in json.dumps(body["messages"])
        message = {"role": "assistant", "content": IMPROVED if wants_prompt else VERDICT}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        base = {"id": "1", "created": 1, "model": "stub", "usage": usage}
        if not body.get("stream"):
            self.answer({**base, "object": "chat.completion", "choices": [choice]})
            return
        deltas = [{"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None} for word in ("one", "two")]
        chunks = [{**base, "object": "chat.completion.chunk", "choices": [delta]} for delta in deltas]
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.answer(text, "text/event-stream")

    def answer(self, content: object, kind: str = "application/json") -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    print("listening", flush=True)  # noqa: T201
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
