"""The web application of `evaluate human` (Fig. 13). Its only state is the file of answers."""

import time
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from flask import Flask, Response, abort, g, redirect, request, url_for

from dollar_jax.errors import UserError
from dollar_jax.evaluate.human_guard import protect
from dollar_jax.evaluate.human_study import (
    CHOICES,
    LONGEST,
    QUESTIONS,
    Study,
    Task,
    agenda,
    identity,
    is_name,
    record,
    remaining,
)
from dollar_jax.evaluate.pages import render

PAGE = "human.html.jinja"
EMPTY_BOX = 8  # bytes of the smallest box of an MP4 file: its size and its type


def create_app(study: Study, hosts: Set[str]) -> Flask:
    """The application for any WSGI server; requests may run in threads.

    GET /?rater=NAME    the first pair that NAME has not answered, or thanks after the last; without NAME the start page
    POST /              rater, pair, and left, equal or right for each question; status 422: a question is not answered
    GET /video          rater, pair and side. URL, headers and length of the response do not reveal which model made the
                        video

    Args:
      study: the study that raters take part in.
      hosts: see `human_guard.protect`.
    """
    app = Flask(__name__)
    protect(app, hosts)

    @app.get("/")
    def page():
        rater = identity(request.args.get("rater", ""))
        if not is_name(rater):
            total = min(study.count, len(study.pairs))
            text = _render(view="welcome", total=total, questions=QUESTIONS, longest=LONGEST, refused=bool(rater))
            return text, 400 if rater else 200
        tasks = remaining(study, rater)
        return _ask(study, rater, tasks[0], {}) if tasks else _render(view="thanks", rater=rater)

    @app.post("/")
    def answer():
        rater = identity(request.form.get("rater", ""))
        task = _find(study, rater, request.form.get("pair"))
        choices = {question.key: request.form.get(question.key) for question in QUESTIONS}
        if not set(choices.values()) <= set(CHOICES):
            return _ask(study, rater, task, choices), 422
        try:
            record(study, rater, task, choices, time.time())
        except OSError as error:
            app.logger.error("an answer was not saved: %s", error)
            reason = f"Your answer was not saved: {error.strerror}. Go back and try again."  # without a path
            return Response(reason, 500, mimetype="text/plain")
        return redirect(url_for("page", rater=rater), 303)

    @app.get("/video")
    def video():
        task = _find(study, identity(request.args.get("rater", "")), request.args.get("pair"))
        models = {"left": task.left, "right": task.right}
        model = models.get(request.args.get("side")) or abort(404)
        content = _filled(task.pair.videos[model], task.pair.videos.values())
        answer = Response(content, mimetype="video/mp4")
        return answer.make_conditional(request, accept_ranges=True, complete_length=len(content))

    @app.errorhandler(OSError)
    @app.errorhandler(UserError)
    def fail(error: Exception) -> Response:
        app.logger.error("%s", error)
        return Response("Files of this study cannot be read: tell whoever invited you.", 500, mimetype="text/plain")

    return app


def _render(**values) -> str:
    return render(PAGE, nonce=g.nonce, **values)


def _filled(video: Path, videos: Iterable[Path]) -> bytes:
    """The file's bytes, padded with an empty box, which players skip, to the length of the longest of `videos`."""
    content = video.read_bytes()
    size = max(path.stat().st_size for path in videos) + EMPTY_BOX - len(content)
    return content + size.to_bytes(4) + b"free" + bytes(size - EMPTY_BOX)


def _find(study: Study, rater: str, pair: str | None) -> Task:
    tasks = agenda(study, rater) if is_name(rater) else []
    return next((task for task in tasks if task.pair.name == pair), None) or abort(404)


def _ask(study: Study, rater: str, task: Task, choices: Mapping[str, str | None]) -> str:
    """The page of a pair with the choices made so far; after an incomplete answer it names the open questions."""
    total = min(study.count, len(study.pairs))
    name = task.pair.name
    return _render(
        view="pair",
        rater=rater,
        pair=task.pair,
        sources={side: url_for("video", rater=rater, pair=name, side=side) for side in ("left", "right")},
        done=total - len(remaining(study, rater)),
        total=total,
        questions=QUESTIONS,
        options=CHOICES,
        choices=choices,
        unanswered=[question.name for question in QUESTIONS if choices and choices[question.key] not in CHOICES],
    )
