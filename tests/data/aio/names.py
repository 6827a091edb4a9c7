"""Which names there are, and which there are not: a program may look before it uses one."""

import asyncio
import asyncio.core

HERE = """
CancelledError Event Lock Loop StreamReader StreamWriter Task TaskQueue ThreadSafeFlag TimeoutError
create_task cur_task current_task gather get_event_loop new_event_loop open_connection run
run_until_complete sleep sleep_ms start_server ticks wait_for wait_for_ms __version__
"""
CORE = """
CancelledError Loop Task TaskQueue TimeoutError create_task cur_task current_task get_event_loop
new_event_loop run run_until_complete sleep sleep_ms ticks
"""
LOOP = """
call_exception_handler close create_task default_exception_handler get_exception_handler
run_forever run_until_complete set_exception_handler stop
"""
STREAM = """
aclose awrite awritestr close drain get_extra_info read readexactly readinto readline wait_closed
write
"""
ABSENT = """
Barrier Condition Future Queue Runner Semaphore TaskGroup as_completed ensure_future
get_running_loop shield timeout to_thread wait all_tasks InvalidStateError
"""


def show(title, owner, names):
    print(title)
    for name in names.split():
        print(" ", name, hasattr(owner, name))


async def shows_task():
    show("task", asyncio.current_task(), "cancel done result exception add_done_callback")


show("asyncio", asyncio, HERE)
show("core", asyncio.core, CORE)
show("loop", asyncio.get_event_loop(), LOOP)
show("stream", asyncio.StreamReader, STREAM)
show("event", asyncio.Event(), "is_set set clear wait")
show("flag", asyncio.ThreadSafeFlag(), "set clear wait")
show("lock", asyncio.Lock(), "locked acquire release")
show("absent", asyncio, ABSENT)
print(asyncio.__version__, asyncio.StreamReader is asyncio.StreamWriter)
print(issubclass(asyncio.CancelledError, Exception), issubclass(asyncio.TimeoutError, OSError))
asyncio.run(shows_task())
