"""Processes that begin at once: a helper that has imported the library forks a child for every job, since an import costs seconds.

Children can be killed at any time, meet as processes of one run, and die by themselves at a chosen call of the operating system."""
import atexit
import functools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def forks():
    "The helper, started when it is first asked for."
    helper = Forks()
    atexit.register(helper.close)
    helper.run()  # no jobs: wait until it is ready
    return helper


class Forks:
    "The helper. `run` forks one child per dict of arguments of `train_job`, waits for all, and returns [(exit code, what was printed)]."
    def __init__(self):
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': os.pathsep.join([str(HERE), os.environ.get('PYTHONPATH', '')])}
        self.process = subprocess.Popen([sys.executable, '-W', 'ignore', __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def close(self):
        self.process.stdin.close()
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: self.process.kill()

    def run(self, *jobs, kill=(), timeout=240, together=False):
        """Run the jobs at once; `kill`: (number of the job, signal, seconds after its start, or the path of a file: when it exists);
        `together`: as the processes of one run."""
        text = json.dumps(dict(jobs=jobs, kill=kill, timeout=timeout, together=together), default=str)
        print(text, file=self.process.stdin, flush=True)
        return [tuple(o) for o in json.loads(self.process.stdout.readline())]


def child(job, env, out):
    "Run the job in a forked process, which ends here."
    code = 1
    try:
        for fd in (1, 2): os.dup2(out.fileno(), fd)
        os.environ.update(env)
        train_job(**job)
        code = 0
    except SystemExit as e: code = e.code if isinstance(e.code, int) else 1
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def start(jobs, together):
    "Fork; returns process numbers and the files that the children print into."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port, n, pids, files = s.getsockname()[1], len(jobs), [], []
    for i, job in enumerate(jobs):
        env = dict(RANK=i, LOCAL_RANK=i, WORLD_SIZE=n, LOCAL_WORLD_SIZE=n, MASTER_ADDR='127.0.0.1', MASTER_PORT=port) if together else {}
        files.append(tempfile.TemporaryFile('w+'))
        pids.append(os.fork())
        if not pids[-1]: child(job, {k: str(v) for k, v in env.items()}, files[-1])
    return pids, files


def is_due(when, began): return time.monotonic() - began > when if isinstance(when, (int, float)) else Path(when).exists()


def serve():
    import fastai.distributed, pconv_course.cli, pconv_course.runs.train  # noqa: F401, E401 (what the children need)
    for line in sys.stdin:
        job = json.loads(line)
        began, (pids, files), codes, kills = time.monotonic(), start(job['jobs'], job['together']), {}, list(job['kill'])
        while len(codes) < len(pids):
            for k in [k for k in kills if is_due(k[2], began)]:
                kills.remove(k)
                if k[0] not in codes: os.kill(pids[k[0]], getattr(signal, k[1]))
            for i, pid in enumerate(pids):
                if i in codes: continue
                if time.monotonic() - began > job['timeout']: os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done: codes[i] = os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        texts = []
        for f in files: f.seek(0), texts.append(f.read()), f.close()
        print(json.dumps([[codes[i], text] for i, text in enumerate(texts)]), flush=True)


# what the children do

def die_at(place, count):
    "From now on the process kills itself (-9) at call number `count` of os.fsync or os.replace, or in the middle of line number `count` of a log."
    import builtins
    seen, real = 0, getattr(os, place) if place != 'log' else builtins.open
    def fatal(*args, **kwargs):
        nonlocal seen
        seen += place != 'log' or str(args[0]).endswith('log.jsonl') and args[1] == 'a'
        if seen < count: return real(*args, **kwargs)
        if place == 'log': real(args[0], 'a').write('{"kind": "st')
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(builtins if place == 'log' else os, 'open' if place == 'log' else place, fatal)


def act(name, *args):
    "What happens to a run before one of its steps."
    if name == 'die_at': die_at(*args)
    elif name == 'wait': time.sleep(600)
    elif name == 'remove': [shutil.rmtree(p) if Path(p).is_dir() else Path(p).unlink() for p in args]
    elif name == 'no_space': signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (args[0], args[0]))
    else: os.kill(os.getpid(), getattr(signal, name))


def train_job(recipe, out, at=None, do=(), only=None, probe=None, bn_eval=False, user=None, wait_for=None, then=None, data='drawn', **kwargs):
    """`train` as `pconv train` calls it, by a recipe in a dict; None: resume. Before training step `at`, `do`, in process `only` (None: all).

    `probe`: a folder for what each process saw in each batch; `bn_eval`: batch norm as in evaluation; `user`: number of the user to be;
    `wait_for`, `then`: a file to wait for before, and one to make after."""
    import torch
    from fastai.callback.core import Callback
    from safetensors.torch import save_file
    from pconv_course.base.core import clean_exit
    from pconv_course.recipe import recipe_from
    from pconv_course.runs.train import train
    rank = int(os.environ.get('RANK', 0))
    class Act(Callback):
        order, run_valid, done = 5.5, False, False
        def before_batch(self):
            step = self.position.job.position.step
            if bn_eval: [m.eval() for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            if probe: save_file(dict(gt=self.yb[0].contiguous(), m=self.yb[1].contiguous()), Path(probe)/f'{step}-{self.iter}-{rank}')
            if step != at or only not in (None, rank) or self.done: return
            self.done = True
            if do[0] == 'nan': self.yb[0][0, 0, 0, 0] = float('nan')
            else: act(*do)
    while wait_for and not Path(wait_for).exists(): time.sleep(0.01)
    if user: os.setuid(user)
    try: clean_exit('pconv train')(train)(recipe and recipe_from(recipe), data, out, resume=not recipe, progress=False, device='cpu', cbs=[Act()], **kwargs)
    finally:
        if then: Path(then).touch()


if __name__ == '__main__': serve()
