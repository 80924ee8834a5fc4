"""The server of `evaluate human` as a process of its own, with two folders of small videos, for several test files."""

import subprocess

import numpy as np
from commands import program, run

from dollar_jax.data.video import write_video


class Server:
    """Six prompts, a video of each of two models; `start` and `kill -9` as often as wanted."""

    def __init__(self, folder, prompts=6, height=32, width=48, frames=5):
        self.answers, self.port = folder / "answers.jsonl", 0
        self.prompts = [f"prompt {i}: a bright square on a dark floor" for i in range(prompts)]
        (folder / "prompts.txt").write_text("\n".join(self.prompts))
        random = np.random.default_rng(0)
        for model in ("student", "teacher"):
            (folder / model).mkdir()
            for i in range(prompts):
                video = np.full((frames, height, width, 3), random.integers(30, 120, 3), np.uint8)
                for frame, left in zip(video, np.linspace(0, width // 2, frames).astype(int), strict=True):
                    frame[height // 3 : height * 2 // 3, left : left + width // 4] = random.integers(150, 255, 3)
                write_video(folder / model / f"{i:05d}-0.mp4", video, fps=12)
        self._command = ["evaluate", "human", f"--answers={self.answers}"]
        videos = [f"--videos={model}={folder / model}" for model in ("student", "teacher")]
        self.folders = [*videos, f"--prompts={folder / 'prompts.txt'}"]

    def start(self, *flags, stderr=None):
        """Starts it, at the port it had before, and returns its address."""
        command = program([*self._command, *self.folders, f"--port={self.port}", *flags])
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.process.stdout.readline()
        self.url = self.process.stdout.readline().split()[0]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        return self.url

    def kill(self):
        """Kills it; `errors` is then what it had written to a pipe for its standard error."""
        self.process.kill()
        self.errors = self.process.communicate()[1]

    def run(self, *flags):
        """Runs the command with other flags to its end."""
        return run([*self._command, *flags])
