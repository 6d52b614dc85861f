import asyncio

from keyturn.web.turns import Turns

from tests.virtual import task_of


async def test_a_turn_has_room_for_so_much_and_the_rest_comes_in_order() -> None:
    """One that asks for more than there is has a turn of its own."""
    turns, seen = Turns(asyncio.get_running_loop(), 10), list[list[int]]()
    number = 0

    async def ask(name: int, size: int) -> None:
        await turns.take(size)
        while len(seen) <= number:
            seen.append([])
        seen[number].append(name)

    tasks = [task_of(ask(name, size)) for name, size in enumerate((4, 4, 4, 25, 1, 9))]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        number += bool(len(seen) > number)
    assert [name for turn in seen for name in turn] == [0, 1, 2, 3, 4, 5]
    assert seen[0] == [0, 1]


async def test_however_many_ask_each_turn_stays_short() -> None:
    """A thousand that come together are spread over as many turns as they need."""
    turns, most, done = Turns(asyncio.get_running_loop(), 8), 0, 0

    async def ask() -> None:
        nonlocal done
        await turns.take(1)
        done += 1

    tasks = [task_of(ask()) for _ in range(1000)]
    while done < 1000:
        before = done
        await asyncio.sleep(0)
        most = max(most, done - before)
    assert most <= 16, "those that are woken and those that ask anew"
    await asyncio.gather(*tasks)


async def test_who_leaves_takes_no_room() -> None:
    """A caller that goes away while it waits is passed over."""
    turns = Turns(asyncio.get_running_loop(), 1)
    tasks = [task_of(turns.take(1)) for _ in range(6)]
    await asyncio.sleep(0)
    tasks[4].cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [False, False, False, False, True, False]


async def test_a_crowd_of_one_party_holds_up_itself() -> None:
    """One of each party comes after another, whoever asked first; each party keeps its order."""
    turns, seen = Turns(asyncio.get_running_loop(), 2), list[str]()

    async def ask(party: str, number: int) -> None:
        await turns.take(1, party)
        seen.append(f"{party}{number}")

    tasks = [task_of(ask("a", number)) for number in range(6)]
    tasks += [task_of(ask("b", number)) for number in range(2)]
    await asyncio.wait(tasks)
    assert seen[:2] == ["a0", "a1"], "there was room"
    assert seen[2:] == ["a2", "b0", "a3", "b1", "a4", "a5"]
