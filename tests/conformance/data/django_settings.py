"""Settings and test runner for Django's own tests; copied beside its runtests.py."""

import os
import unittest

from django.test.runner import DiscoverRunner


def _database(name: str) -> dict[str, object]:
    server = {"HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"], "USER": "postgres"}
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, **server}


DATABASES = {"default": _database("django"), "other": _database("django2")}
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "grille_settings.Runner"


class Outcomes(unittest.TextTestResult):
    """Writes one line for each test: its outcome and its id.  The worst of several lines counts."""

    def _write(self, outcome: str, test: unittest.TestCase) -> None:
        with open(os.environ["GRILLE_OUTCOMES"], "a") as file:  # noqa: PTH123
            file.write(f"{outcome} {test.id()}\n")

    def addSuccess(self, test):  # noqa: N802
        super().addSuccess(test)
        self._write("passed", test)

    def addError(self, test, err):  # noqa: N802
        super().addError(test, err)
        self._write("failed", test)

    def addFailure(self, test, err):  # noqa: N802
        super().addFailure(test, err)
        self._write("failed", test)

    def addSubTest(self, test, subtest, err):  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._write("failed", test)

    def addSkip(self, test, reason):  # noqa: N802
        super().addSkip(test, reason)
        self._write("skipped", test)

    def addExpectedFailure(self, test, err):  # noqa: N802
        super().addExpectedFailure(test, err)
        self._write("passed", test)

    def addUnexpectedSuccess(self, test):  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._write("failed", test)


class Runner(DiscoverRunner):
    def get_resultclass(self):
        return Outcomes
