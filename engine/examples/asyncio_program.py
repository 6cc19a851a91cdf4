"""sdturbo in an asyncio program. Pictures are drawn beside other work, and a cancelled task stops drawing."""

from __future__ import annotations

import asyncio

from sdturbo import Pipeline, Result


async def main(pipeline: Pipeline) -> list[Result]:
    """Two pictures while the loop does other work, and a third that is cancelled."""
    cancelled = asyncio.create_task(pipeline.generate_async("a picture nobody sees", num_inference_steps=4))
    drawing = asyncio.gather(*(pipeline.generate_async("a red cat in the snow", seed=seed) for seed in (0, 1)))
    cancelled.cancel()
    ticks = 0
    while not drawing.done():
        ticks += 1
        await asyncio.sleep(0.001)
    print(f"the loop went round {ticks} times while two pictures were drawn")
    return await drawing


if __name__ == "__main__":
    for result in asyncio.run(main(Pipeline.load("build/sd-turbo"))):
        print(result.seeds, result.timings)
