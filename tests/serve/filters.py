"""Shared by the tests of the operator's filter."""

import threading

from sdturbo import Refused


class Words:
    """Refuses prompts and pictures by a word of the prompt, and remembers what it was asked and where."""

    def __init__(self):
        self.prompts, self.threads = [], set()

    def check_prompt(self, prompt):
        self.prompts.append(prompt)
        self.threads.add(threading.current_thread().name)
        if "broken" in prompt:
            raise KeyError(prompt)
        if "vague" in prompt:
            return False
        if "exit" in prompt:
            raise SystemExit(prompt)
        if "raised" in prompt:
            raise Refused("raised by hand")
        return f"no {prompt!r} here" if "blood" in prompt else None

    def check_picture(self, picture):
        self.threads.add(threading.current_thread().name)
        assert picture.mode == "RGB"
        return "not this one" if "shown" in self.prompts[-1:] else None


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]
