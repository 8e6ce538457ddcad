"""The FastAPI peer of benchmarks.serving: one process of uvicorn, which serves one model.

    python _serving_fastapi.py MODEL

It prints its port when the model is loaded, and ends when standard input ends. There are two paths:

- `/v1/models/model:predict` does what makes this peer fast: uvloop and httptools, JSON by orjson,
  no validation by pydantic, the signature as a concrete function, and no thread for a request,
  since the call is shorter than a switch.
- `/plain` is written as FastAPI's tutorial writes a request with a body: a model of pydantic, and a
  function that FastAPI runs in a thread. uvloop and httptools, as above.
"""

import socket
import sys
import threading

import orjson
import tensorflow as tf
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel


class Rows(BaseModel):
    user: list[int]
    item: list[int]


class Body(BaseModel):
    inputs: Rows


def make_app(folder: str) -> FastAPI:
    # There is one process for each core.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    app = FastAPI()
    app.state.model = tf.saved_model.load(folder)  # the function does not keep the variables
    signature = app.state.model.signatures["serving_default"]

    @app.post("/v1/models/model:predict")
    async def predict(request: Request) -> Response:
        inputs = orjson.loads(await request.body())["inputs"]
        outputs = signature(
            user=tf.constant(inputs["user"], tf.int64), item=tf.constant(inputs["item"], tf.int64)
        )
        body = {"outputs": outputs["score"].numpy()}
        text = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(text, media_type="application/json")

    @app.post("/plain")
    def predict_plain(body: Body) -> dict[str, list[float]]:
        outputs = signature(
            user=tf.constant(body.inputs.user, tf.int64),
            item=tf.constant(body.inputs.item, tf.int64),
        )
        return {"outputs": outputs["score"].numpy().tolist()}

    return app


def main() -> None:
    app = make_app(sys.argv[1])
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)

    def end_with_stdin() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=end_with_stdin, daemon=True).start()
    # It listens from here on, so a client that connects early is answered when uvicorn runs.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
