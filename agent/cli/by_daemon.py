"""A verb that starts a run, asked of the daemon when there is one: same words, same answer."""

from __future__ import annotations

import os

from agent.edges.at_boot import head_from_names
from agent.ground.codec import decode
from agent.ground.errors import AgentError, Busy, Interrupted, UsageError, revive
from agent.links.client import connect
from agent.links.wire import RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.edges.announce import Announcer
    from agent.edges.config import Config
    from agent.links.client import Client
    from agent.worker.job import Job

LOOK_S = 2.0


def by_daemon(config: Config, job: Job, announcer: Announcer) -> dict[str, Any] | None:
    """The result of the job as the daemon did it; None where no daemon listens.

    Interrupted by Ctrl-C the run goes on: the daemon does it, not this process.
    """
    client = connect(config.run_dir + "/agent.sock")
    if client is None:
        return None
    accepted: list[int] = []
    try:
        return _done(config, client, job, announcer, accepted)
    except Busy:
        if not accepted:
            raise
        raise Interrupted(
            f"the agent ended while run {accepted[0]} was on; its next start goes on, and "
            "`posagent status` tells how far it is"
        ) from None
    except RemoteError as error:
        raise agent_error(error) from error
    except KeyboardInterrupt:
        raise Interrupted("the run goes on in the agent; `posagent status` tells how far") from None
    finally:
        client.close()


def agent_error(error: RemoteError) -> AgentError:
    """The command's error for what the daemon answered."""
    if error.kind in ("PARAMS", "NO_SUCH", "OP_REUSED", "OP_MISSING"):
        return UsageError(error.message)
    if error.kind == "BUSY":
        return Busy(error.message)
    facts = {k: v for k, v in error.data.items() if k not in ("kind", "retry", "changed", "word")}
    code = error.data.get("word", error.kind)
    return revive({"code": code, "message": error.message, "facts": facts})


def _done(
    config: Config, client: Client, job: Job, announcer: Announcer, begun: list[int]
) -> dict[str, Any]:
    params = _params(config, job)
    client.call("subscribe", {"events": ["progress", "state"], "min_ms": 200})
    accepted = client.call(job.kind, params)
    if accepted.get("noop"):
        at = params["to"]
        return dict(_may_start(client), verdict="NOT_REQUIRED", from_version=at, to_version=at)
    run = accepted["run"]
    begun.append(run)
    while client.call("result", {"run": run})["state"] == "running":
        while True:
            said = client.wait(LOOK_S)
            if said is None:
                break
            method, told = said
            if method == "progress":
                announcer.mark(told["state"], told["step"], told["done"], told["total"])
            elif told.get("to") in ("idle", "held"):
                break
    result: dict[str, Any] = decode(client.read(f"result/{run}").decode())
    return result if "app_may_start" in result else dict(result, **_may_start(client))


def _may_start(client: Client) -> dict[str, Any]:
    status = client.call("status", {})
    found = {"app_may_start": status["app_may_start"]}
    return found if found["app_may_start"] else dict(found, app_must_not_start_because="see status")


def _params(config: Config, job: Job) -> dict[str, Any]:
    params: dict[str, Any] = {"op": "cli-" + os.urandom(8).hex()}
    if job.kind == "migrate":
        params["to"] = max(head_from_names(config.migrations_dir), 0)
    elif job.kind == "rollback":
        params["to"] = job.to_version
    elif job.kind == "restore":
        params["backup"] = os.path.basename(job.restore_from)
        if type(job.discard) is dict:
            params["discard"] = ",".join(f"{word}={n}" for word, n in job.discard.items())
        elif job.discard is not None:
            params["discard"] = job.discard
    if job.despite_unsettled:
        params["despite_unsettled"] = True
    return params
