import asyncio

from core.tasks import cancel


async def _deaf(times: int) -> int:
    """A task that goes on after so many cancellations, as one inside `asyncio.wait_for` does."""
    heard = 0
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            heard += 1
            if heard > times:
                raise


async def test_a_task_that_drops_a_cancellation_ends() -> None:
    tasks = [asyncio.create_task(_deaf(times)) for times in (0, 1, 2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await cancel(*tasks)
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_has_failed_does_not_fail_the_one_who_ends_it() -> None:
    async def fail() -> None:
        raise OSError("away")

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    await cancel(task)
    assert isinstance(task.exception(), OSError)
