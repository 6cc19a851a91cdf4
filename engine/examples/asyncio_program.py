"""sdturbo in an asyncio program: pictures are drawn beside other work, and a task that is cancelled stops drawing."""

from __future__ import annotations

import asyncio

from sdturbo import Pipeline, Result


async def main(pipeline: Pipeline) -> list[Result]:
    """Two pictures while the loop does something else, and a third that nobody waits for in the end."""
    unwanted = asyncio.create_task(pipeline.generate_async("a picture nobody wants", num_inference_steps=4))
    drawing = asyncio.gather(*(pipeline.generate_async("a red cat in the snow", seed=seed) for seed in (0, 1)))
    unwanted.cancel()
    ticks = 0
    while not drawing.done():
        ticks += 1
        await asyncio.sleep(0.001)
    print(f"the loop went round {ticks} times while two pictures were drawn")
    return await drawing


if __name__ == "__main__":
    for result in asyncio.run(main(Pipeline.load("build/sd-turbo"))):
        print(result.seeds, result.timings)
