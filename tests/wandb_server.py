"""A local mock of the W&B server: it records runs, serves the runs of a sweep, and stops responding on request."""

import json
import re
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

KEY = "0123456789" * 4
INFO = {
    "cliVersionInfo": {"min_cli_version": "0.10.0", "max_cli_version": "9.9.9"},
    "latestLocalVersionInfo": {
        "outOfDate": False,
        "latestVersionString": "9.9.9",
        "versionOnThisInstanceString": "9.9.9",
    },
    "features": [],
}
ENTITY = {"id": "e1", "name": "someone"}


class Sweep:
    """State of the server.

    Attributes:
        planned: Parameters of the remaining runs of a sweep.
        config: Config of the sweep.
        stopped: Ids of runs to stop once they have logged something.
        states: Runs of the agent, for every heartbeat.
        runs: Properties of every run, by id.
        files: Lines of the file stream, by run id and file.
        ended: Exit codes by run id.
        projects: Projects of created sweeps.
        operations: Names of all requests.
        artifacts: Properties of every artifact.
        vanished: Whether the server has stopped responding, after a request for ``/vanish``.
        handed: Number of runs given to the agent.
    """

    def __init__(self, planned=()):
        self.planned = list(planned)
        self.config = None
        self.stopped = set()
        self.states = []
        self.runs = {}
        self.files = defaultdict(lambda: defaultdict(list))
        self.ended = {}
        self.projects = []
        self.operations = []
        self.artifacts = []
        self.vanished = False
        self.handed = 0

    def history(self, run_id):
        """Return the rows that a run logged."""
        return [json.loads(line) for line in self.files[run_id]["wandb-history.jsonl"]]

    def console(self, run_id):
        """Return the console output of a run."""
        return "\n".join(self.files[run_id]["output.log"])

    def answer(self, operation, variables):
        """Return the response to an operation."""
        if operation == "CreateArtifact":
            self.artifacts.append(variables)
        method = getattr(self, f"_{operation}", None)
        if method is None:
            return {"data": None, "errors": [{"message": f"the mock server has no {operation}"}]}
        return {"data": method(variables)}

    def _Viewer(self, _):  # noqa: N802
        teams = {"edges": [{"node": {"name": "someone"}}]}
        person = {"id": "u1", "entity": "someone", "username": "someone", "email": "", "admin": False, "flags": "{}"}
        return {"viewer": person | {"teams": teams}, "serverInfo": INFO}

    def _ServerInfo(self, _):  # noqa: N802
        return {"serverInfo": INFO}

    def _UpsertSweep(self, variables):  # noqa: N802
        self.config = variables["config"]
        self.projects.append(variables["projectName"])
        project = {"id": "p1", "name": variables["projectName"], "entity": ENTITY}
        return {"upsertSweep": {"sweep": {"name": "s1", "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, _):  # noqa: N802
        times = dict.fromkeys(("createdAt", "heartbeatAt", "updatedAt"), "2026-01-01T00:00:00Z")
        other = dict.fromkeys(("description", "bestLoss", "controller", "scheduler", "earlyStopJobRunning"))
        sweep = {"id": "s1", "name": "s1", "method": "grid", "state": "RUNNING", "config": self.config}
        return {"project": {"sweep": sweep | times | other | {"runs": {"edges": []}}}}

    def _CreateAgent(self, _):  # noqa: N802
        return {"createAgent": {"agent": {"id": "a1"}}}

    def _Heartbeat(self, variables):  # noqa: N802
        running = json.loads(variables["runState"] or "{}")
        self.states.append(sorted(running))
        commands = []
        if running:
            commands = [{"type": "stop", "run_id": name} for name in running if self._is_to_stop(name)]
        elif self.planned:
            self.handed += 1
            arguments = {name: {"value": value, "desc": None} for name, value in self.planned.pop(0).items()}
            program = yaml.safe_load(self.config)["program"]
            commands = [{"type": "run", "run_id": f"run{self.handed}", "program": program, "args": arguments}]
        else:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "a1"}, "commands": json.dumps(commands)}}

    def _ArtifactType(self, _):  # noqa: N802
        return {"project": {"artifact": None}}

    def _is_to_stop(self, run_id):
        return run_id in self.stopped and bool(self.files[run_id]["wandb-history.jsonl"])

    def _UpsertBucket(self, variables):  # noqa: N802
        run = self.runs.setdefault(variables["name"], {})
        run |= {name: value for name, value in variables.items() if value is not None}
        project = {"id": "p1", "name": variables.get("project"), "entity": ENTITY}
        bucket = {"id": variables["name"], "name": variables["name"], "displayName": variables.get("displayName")}
        bucket |= {"project": project, "sweepName": variables.get("sweep"), "historyLineCount": 0, "config": "{}"}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        sweep = self.server.sweep
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        sweep.vanished |= self.path == "/vanish"
        if sweep.vanished:
            self.close_connection = True
            return
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        with self.server.lock:
            if stream:
                self._stream(stream[1], request)
                self._send(200, {})
                return
            match = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
            name = match[1] if match else ""
            sweep.operations.append(name)
            self._send(200, sweep.answer(name, request.get("variables") or {}))

    def _stream(self, run_id, request):
        """Store lines of files, and the exit code of a run."""
        for name, part in (request.get("files") or {}).items():
            lines = self.server.sweep.files[run_id][name]
            lines[part["offset"] :] = part["content"]
        if request.get("complete"):
            self.server.sweep.ended[run_id] = request.get("exitcode")

    def _send(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(planned=()):
    """Yield a `Sweep` and the URL of its server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.sweep, server.lock = Sweep(planned), threading.Lock()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.sweep, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
