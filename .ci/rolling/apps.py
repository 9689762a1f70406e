"""apps.py: the applications of gunicorn and uvicorn, whose responses begin with the id of the process."""

import asyncio, os, time

WORK = 0.02


def wsgi(environ, start_response):
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/app/slow":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return slow()
    time.sleep(float(environ["QUERY_STRING"] or WORK))
    text = b"%d %d" % (os.getpid(), len(body))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text]


def slow():
    """Ten pieces in 1.5 s."""
    for _ in range(10):
        yield b"%08d" % os.getpid()
        time.sleep(0.15)


async def asgi(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(os.getpid())})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
    elif scope["type"] == "http":
        length = 0
        while True:
            event = await receive()
            length += len(event.get("body", b""))
            if not event.get("more_body"):
                break
        await asyncio.sleep(float(scope["query_string"] or WORK))
        text = b"%d %d" % (os.getpid(), length)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})
