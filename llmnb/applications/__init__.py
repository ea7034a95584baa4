"""Five applications, called alike: App.load(…), then app(text), app.batch(texts), app.stream."""

from llmnb.applications.base import Application, ApplicationError, Result

__all__ = ["Application", "ApplicationError", "Result"]
