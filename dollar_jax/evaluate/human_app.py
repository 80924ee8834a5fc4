"""The web application of `evaluate human` (Fig. 13). Its whole state is the file of answers."""

import time
from collections.abc import Mapping

from flask import Flask, Response, abort, redirect, request, send_file, url_for

from dollar_jax.evaluate.human_study import CHOICES, QUESTIONS, Study, Task, agenda, identity, record, remaining
from dollar_jax.evaluate.pages import render

PAGE = "human.html.jinja"


def create_app(study: Study) -> Flask:
    """The application, for any WSGI server; requests may come in threads.

    GET /?rater=NAME    the first pair that NAME has not answered; thanks, when all are; without NAME the way in
    POST /              rater, pair, and for each question left, equal or right; 422 says which question is open
    GET /video          rater, pair and side: the address does not tell which model made the video
    """
    app = Flask(__name__)

    @app.get("/")
    def page():
        rater = identity(request.args.get("rater", ""))
        if not rater:
            return render(PAGE, view="welcome", total=min(study.count, len(study.pairs)), questions=QUESTIONS)
        tasks = remaining(study, rater)
        return _ask(study, rater, tasks[0], {}) if tasks else render(PAGE, view="thanks", rater=rater)

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
            return Response(f"Your answer was not saved: {error}. Go back and try again.", 500, mimetype="text/plain")
        return redirect(url_for("page", rater=rater), 303)

    @app.get("/video")
    def video():
        task = _find(study, identity(request.args.get("rater", "")), request.args.get("pair"))
        models = {"left": task.left, "right": task.right}
        model = models.get(request.args.get("side")) or abort(404)
        return send_file(task.pair.videos[model].resolve(), "video/mp4")

    return app


def _find(study: Study, rater: str, pair: str | None) -> Task:
    tasks = agenda(study, rater) if rater else []
    return next((task for task in tasks if task.pair.name == pair), None) or abort(404)


def _ask(study: Study, rater: str, task: Task, choices: Mapping[str, str | None]) -> str:
    """The page of a pair, with the choices made so far; where there are some, it says what is open."""
    total = min(study.count, len(study.pairs))
    name = task.pair.name
    return render(
        PAGE,
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
