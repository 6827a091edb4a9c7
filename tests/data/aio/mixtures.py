"""Hundreds of small mixtures of tasks that wait, wake, cancel and fail, each step of each told.

The mixtures come from a counter, so they are the same on every interpreter.
"""

import asyncio
import sys

MIXTURES = int(sys.argv[2]) if len(sys.argv) > 2 else 120
FIRST = int(sys.argv[3]) if len(sys.argv) > 3 else 1
# Cancels and limits apart: a cancelled `wait_for` of MicroPython may cancel its caller once more.
STEPS = ("sssewwclxxaaggtr", "sssewwclffaaggtr")


class Dice:
    """The same numbers everywhere."""

    def __init__(self, seed):
        self.state = seed * 2_654_435_761 % 4_294_967_296

    def roll(self, sides):
        self.state = (self.state * 1_103_515_245 + 12_345) % 2_147_483_648
        return (self.state >> 8) % sides


class Mixture:
    def __init__(self, seed):
        self.dice = Dice(seed)
        self.limits = seed % 2
        self.events = [asyncio.Event() for _ in range(2)]
        self.lock = asyncio.Lock()
        self.told = []
        self.tasks = []
        self.awaited = {}  # by the place of the task that awaits

    def tell(self, *words):
        self.told.append(" ".join([str(word) for word in words]))

    async def part(self, name, steps):
        for step in steps:
            self.tell(name, step)
            try:
                await self.do(name, step)
            except asyncio.CancelledError:
                self.tell(name, "cancelled")
                if self.dice.roll(2):
                    raise
            except (RuntimeError, LookupError) as error:
                self.tell(name, type(error).__name__, error.args)
        return name

    async def do(self, name, step):
        event = self.events[self.dice.roll(2)]
        if step == "s":
            await asyncio.sleep_ms(0)
        elif step == "e":
            event.set()
        elif step == "c":
            event.clear()
        elif step == "w":
            await event.wait()
        elif step == "l":
            async with self.lock:
                await asyncio.sleep_ms(0)
        elif step == "x":
            # Only where it does not come back to the one that asks: MicroPython loses that cancel.
            place = self.dice.roll(len(self.tasks))
            while place in self.awaited:
                place = self.awaited[place]
            if place != self.tasks.index(asyncio.current_task()):
                self.tell(name, "cancel", self.tasks[place].cancel())
        elif step == "a":
            # Only those that came later, so that nobody waits for itself.
            place = self.tasks.index(asyncio.current_task())
            if place + 1 < len(self.tasks):
                other = place + 1 + self.dice.roll(len(self.tasks) - place - 1)
                self.awaited[place] = other
                try:
                    self.tell(name, "got", await self.tasks[other])
                finally:
                    del self.awaited[place]
        elif step == "g":
            parts = [self.part(name + str(number), self.draw("sswewltr")) for number in range(2)]
            errors = self.dice.roll(2) == 0
            found = await asyncio.gather(*parts, return_exceptions=errors)
            self.tell(name, "gathered", [type(one).__name__ for one in found])
        elif step == "f":
            limit = (0, 60_000)[self.dice.roll(2)]
            part = self.part(name + "+", self.draw("sswewltr"))
            try:
                self.tell(name, "in time", await asyncio.wait_for_ms(part, limit))
            except asyncio.TimeoutError:
                self.tell(name, "too late")
        elif step == "t":
            raise LookupError(name, 1)
        elif step == "r":
            raise ValueError(name, 1)

    def draw(self, steps):
        return [steps[self.dice.roll(len(steps))] for _ in range(1 + self.dice.roll(6))]

    def handler(self, loop, context):
        self.tell("untold", type(context["exception"]).__name__, context["exception"].args)

    async def main(self):
        asyncio.get_event_loop().set_exception_handler(self.handler)
        for name in "abcd"[: 2 + self.dice.roll(3)]:
            self.tasks.append(asyncio.create_task(self.part(name, self.draw(STEPS[self.limits]))))
        for number in range(40):
            await asyncio.sleep_ms(0)
            if number > 10 and number % 3 == 0:
                if self.limits:
                    self.events[number % 2].set()
                else:
                    self.tell("main cancels", [task.cancel() for task in self.tasks])
        for event in self.events:
            event.set()
        self.tell("done", [task.done() for task in self.tasks], self.lock.locked())


for seed in range(FIRST, FIRST + MIXTURES):
    asyncio.new_event_loop()
    mixture = Mixture(seed)
    asyncio.run(mixture.main())
    print(seed, "; ".join(mixture.told))
