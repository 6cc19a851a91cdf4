"""How `tiny` is made, the model that comes with sdturbo. `make tiny` runs all of it, in four hours on two CPU cores.

A program draws flat pictures and describes each in words. The model learns from those pairs alone.
The picture follows the first noise, so that one step is enough: a network that sees the noise can draw the same.

The pictures, in the order to read:

- `palette`, `shapes`, `canvas`: colours, outlines, and paint with smooth edges.
- `subjects`, `props`, `scenery`: the eight subjects, and the six places with small things in them.
- `layout`: the part of a picture that the noise decides. `scenes`: all combinations, and those held out of training.
- `render`: the picture of a scene. `renders`: a growing file of pictures.
- `captions`: the grammar of prompts that people may write. `prompts`: captions as token ids, among words without meaning.
- `starts`: other pictures to start from. `starting`: what the model is to make of them.

The steps of `make tiny`, in their order:

1. `train_vae` trains the autoencoder on pictures and writes `vae.pt`. `latent_scale` then normalises its latents.
2. `train_unet` trains UNet and text encoder together and writes `model.pt`. It reads `latents` (pictures, encoded once),
   `pairs` (batches), `model` (the trained part), `sampler` (the engine's steps, with gradients) and `sheets` (progress).
3. `train_decoder` trains the decoder once more, on the UNet's own latents, which are softer.
4. `checkpoint_writer` writes the checkpoint of all into the exporter, with `model_card.md` as its README.
5. `caption_lists` writes the captions for int8 and the benchmarks beside it.
6. `sdturbo-export build` makes the bundle that the runtime comes with.
7. `evaluate` measures it on held-out combinations, with `classifier` as the judge (`make tiny-eval` alone). `following` is its
   part for start pictures, `sharpness` for fine detail.
   `checkpoint_writer` then runs once more and puts the figures into the card.

The trainings stand on `training` (clock, step, saved state, log), `hardware`, `optimizer`, `configs`, `pixels` and `charts`.
An interrupted run goes on where it was stopped.
"""
